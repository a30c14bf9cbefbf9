"""Tokens that are dropped and leave something in others that stay.

Legend: B batch, Hkv KV heads, N slots, E size of a value, W numbers of a row.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from keyhole.storage.chosen import Chosen


class Merging(Protocol):
    """What rows of kept tokens become when others are dropped."""

    @property
    def keys(self) -> bool:
        """Whether keys change too; else values only."""
        ...

    @property
    def takes(self) -> Tensor:
        """Bool `[B, Hkv, N]`, the slots whose rows change."""
        ...

    def merged(self, rows: Tensor) -> Tensor:
        """Rows `[B, Hkv, N, W]` after it."""
        ...


class NewValues(NamedTuple):
    """Kept tokens get `values [B, Hkv, N, E]` where `takes [B, Hkv, N]`; keys stay."""

    values: Tensor
    takes: Tensor
    keys: bool = False

    def merged(self, rows: Tensor) -> Tensor:
        return torch.where(self.takes.unsqueeze(-1), self.values.to(rows.dtype), rows)


class Merge(NamedTuple):
    """Each slot goes into another one, whose row becomes the weighted mean of all that go there.

    Attributes:
        targets: int64 `[B, Hkv, N]`, a slot that is kept, by its number before; its own where it is kept, -1
            where it is forgotten.
        weights: float32 `[B, Hkv, N]`, positive.
        keys: merge keys too; else values only, since keys were rotated to different positions (CaM).
    """

    targets: Tensor
    weights: Tensor
    keys: bool = False

    @classmethod
    def into_previous(cls, kept: Chosen, slots: int, *, keys: bool = False) -> Merge:
        """Of so many slots, each dropped one goes into the last kept one before it, all with equal weight."""
        stays = torch.zeros(*kept.slots.shape[:2], slots + 1, dtype=torch.bool, device=kept.slots.device)
        stays.scatter_(-1, kept.slots.long().masked_fill(~kept.valid_mask(), slots), True)
        own = torch.arange(slots, device=stays.device)
        targets = own.where(stays[..., :slots], torch.tensor(-1, device=own.device)).cummax(-1).values
        return cls(targets, torch.ones(targets.shape, device=targets.device), keys)

    def merged(self, rows: Tensor) -> Tensor:
        """Rows `[B, Hkv, N, W]` after it; what is neither a target nor merged stays as it was."""
        counted = self.targets >= 0
        weights = self.weights.masked_fill(~counted, 0).unsqueeze(-1)
        targets = self.targets.clamp(min=0).unsqueeze(-1)
        totals = torch.zeros_like(weights).scatter_add_(2, targets, weights)
        sums = torch.zeros(rows.shape, dtype=torch.float32, device=rows.device)
        sums.scatter_add_(2, targets.expand(rows.shape), rows.float() * weights)
        return torch.where(self.takes.unsqueeze(-1), (sums / totals).to(rows.dtype), rows)

    @property
    def takes(self) -> Tensor:
        """Bool `[B, Hkv, N]`, the slots that another one goes into."""
        own = torch.arange(self.targets.shape[-1], device=self.targets.device)
        moved = (self.targets >= 0) & (self.targets != own)
        taken = torch.zeros_like(self.targets).scatter_add_(-1, self.targets.clamp(min=0), moved.long())
        return taken > 0
