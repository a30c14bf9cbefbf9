"""Chosen slots, split by where they are.

Legend: B batch, Hkv KV heads, S slots.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from keyhole.storage.tiers.buffer import GrowingBuffer

ROOM = 64  # tokens for which there is room after others were dropped


class Chosen(NamedTuple):
    """The first `counts [B, Hkv]` of each row of `slots [B, Hkv, S]`.

    Where they are all slots but one, int64 `dropped [B, Hkv]` is that one.
    """

    slots: Tensor
    counts: Tensor
    dropped: Tensor | None = None

    @classmethod
    def of(cls, slots: Tensor, counts: Tensor, heads: int) -> Chosen:
        """Of slots `[B, S]`, the same for all heads, or `[B, Hkv, S]`, and counts `[B]` or `[B, Hkv]`."""
        if slots.dim() == 3:
            return cls(slots, counts)
        return cls(slots.unsqueeze(1).expand(-1, heads, -1), counts.unsqueeze(1).expand(-1, heads))

    @classmethod
    def range(cls, begin: int, end: int, batch: int, heads: int, device: torch.device) -> Chosen:
        """Slots from `begin` to before `end` for all heads, views of one list."""
        slots = torch.arange(begin, end, dtype=torch.int32, device=device)
        counts = torch.tensor(end - begin, dtype=torch.int32, device=device)
        return cls(slots.expand(batch, heads, -1), counts.expand(batch, heads))

    @classmethod
    def without(cls, dropped: Tensor, slots: int) -> Chosen:
        """All of so many slots but one of each head, int64 `[B, Hkv]`."""
        left = torch.arange(slots - 1, dtype=torch.int32, device=dropped.device)
        after = left >= dropped.int().unsqueeze(-1)
        counts = torch.full_like(dropped, slots - 1, dtype=torch.int32)
        return cls(torch.where(after, left + 1, left), counts, dropped)

    def valid_mask(self) -> Tensor:
        """Bool `[B, Hkv, S]`, false for filling."""
        index = torch.arange(self.slots.shape[-1], device=self.slots.device)
        return index < self.counts.unsqueeze(-1)

    def to(self, device: torch.device) -> Chosen:
        """The same on another device."""
        dropped = None if self.dropped is None else self.dropped.to(device)
        return Chosen(self.slots.to(device), self.counts.to(device), dropped)

    def aligned(self) -> Tensor:
        """The slots meant, moved to the end of each row: int32 `[B, Hkv, greatest count]`, -1 before them."""
        width = int(self.counts.max())
        index = torch.arange(width, device=self.slots.device) - (width - self.counts.unsqueeze(-1))
        return self.slots.int().gather(-1, index.clamp(min=0)).masked_fill(index < 0, -1)

    def where(self, wanted: Tensor) -> Chosen:
        """Those for which `wanted [B, Hkv, S]` holds, in the same order; slot 0 fills."""
        wanted = wanted & self.valid_mask()
        counts = wanted.sum(-1)
        places = torch.arange(max(1, int(counts.max())), device=counts.device) < counts.unsqueeze(-1)
        if torch.equal(wanted[..., : places.shape[-1]], places):
            return Chosen(self.slots[..., : places.shape[-1]].masked_fill(~places, 0), counts)
        slots = torch.zeros(places.shape, dtype=self.slots.dtype, device=counts.device)
        slots[places] = self.slots[wanted]
        return Chosen(slots, counts)


def kept_rows(held: GrowingBuffer, kept: Chosen, filling: float) -> GrowingBuffer:
    """What a buffer `[B, Hkv, N, 1]` holds for the slots that are kept, aligned; `filling` before them.

    The buffer itself where just one slot is gone, else one that gives memory back.
    """
    if kept.dropped is not None:
        held.drop(kept.dropped)
        return held
    slots = kept.aligned().unsqueeze(-1)
    fresh = GrowingBuffer(ROOM)
    fresh.append(held.view().gather(2, slots.clamp(min=0).long()).masked_fill(slots < 0, filling))
    return fresh
