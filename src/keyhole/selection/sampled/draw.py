"""Priority sampling: of tokens by their estimated weight, so that one order serves samples of every size.

A token's priority is its estimated weight over a random number in (0, 1]. The k of highest priority are
read. Given the next priority as threshold, one is read with probability min(1, weight / threshold), so what
weighs much is read for certain, and sums in which the others count by the inverse of it are unbiased.

Source: Duffield, Lund, Thorup, "Priority sampling for estimation of arbitrary subset sums", JACM 2007.

Legend: B batch, Hkv KV heads, L lists (Hkv, or 1 for all), N slots before the window, S slots read.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from keyhole.selection.picking.pages import ranked

_LEAST = 1e-30  # of a weight, so that all can be drawn


class Sample(NamedTuple):
    """What is read of the slots that compete.

    Attributes:
        slots: int32 `[B, L, S]`, ascending; from `counts` on, filling without meaning.
        counts: int64 `[B, L]`.
        unread: float32 `[B, L, S]`, how many tokens that are not read one stands for: 1 / p - 1, where it
            was read with probability p; 0 for those that are read for certain, and for filling.
        odds: float32 `[B, L, N]`, the same of all slots, 0 for those that do not compete.
    """

    slots: Tensor
    counts: Tensor
    unread: Tensor
    odds: Tensor

    @property
    def meant(self) -> Tensor:
        """Bool `[B, L, S]`, false for filling."""
        return torch.arange(self.slots.shape[-1], device=self.slots.device) < self.counts.unsqueeze(-1)

    def shared(self, heads: int) -> Sample:
        """For each of so many KV heads, where one list is that of all."""
        return Sample(*(part.expand(-1, heads, *part.shape[2:]) for part in self))


class Priorities:
    """The order in which competing tokens are read.

    Args:
        weights: float32 `[B, L, N]`, estimated.
        competes: bool `[B, 1 or L, N]`.
        chance: float32 `[B, L, N]`, random numbers in (0, 1].
        most: so many are read at most.
    """

    def __init__(self, weights: Tensor, competes: Tensor, chance: Tensor, most: int) -> None:
        self._competes = competes
        self._weights = weights.nan_to_num(posinf=1e30).clamp(min=_LEAST)
        priorities = (self._weights / chance).masked_fill(~competes, -1.0)
        self._order = ranked(priorities, min(most + 1, priorities.shape[-1]))  # the next one is the threshold
        self._priorities = priorities.gather(-1, self._order)

    def sample(self, counts: Tensor) -> Sample:
        """The first `counts [B, L]`, int64, each at most those that compete."""
        width = max(1, int(counts.max()))
        last = self._priorities.shape[-1] - 1
        threshold = self._priorities.gather(-1, counts.clamp(max=last).unsqueeze(-1))
        # Behind the last that competes there is none.
        threshold = threshold.masked_fill((threshold < 0) | (counts.unsqueeze(-1) > last), 0.0)
        odds = (threshold / self._weights - 1).clamp(min=0).masked_fill(~self._competes, 0.0)
        filling = torch.arange(width, device=counts.device) >= counts.unsqueeze(-1)
        beyond = self._weights.shape[-1]
        slots = self._order[..., :width].masked_fill(filling, beyond).sort(dim=-1).values
        slots = slots.masked_fill(slots == beyond, 0)
        return Sample(slots.int(), counts, odds.gather(-1, slots).masked_fill(filling, 0.0), odds)
