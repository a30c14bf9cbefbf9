"""Chosen slots, told apart by where they lie.

Legend: B batch, Hkv KV heads, S slots.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Chosen(NamedTuple):
    """The first `counts [B, Hkv]` of each row of `slots [B, Hkv, S]`."""

    slots: Tensor
    counts: Tensor

    @classmethod
    def of(cls, slots: Tensor, counts: Tensor, heads: int) -> Chosen:
        """Of slots `[B, S]`, the same for all heads, or `[B, Hkv, S]`, and counts `[B]` or `[B, Hkv]`."""
        if slots.dim() == 3:
            return cls(slots, counts)
        return cls(slots.unsqueeze(1).expand(-1, heads, -1), counts.unsqueeze(1).expand(-1, heads))

    def meant(self) -> Tensor:
        """Bool `[B, Hkv, S]`, false for filling."""
        index = torch.arange(self.slots.shape[-1], device=self.slots.device)
        return index < self.counts.unsqueeze(-1)

    def aligned(self) -> Tensor:
        """The slots meant, moved to the end of each row: int32 `[B, Hkv, greatest count]`, -1 before them."""
        width = int(self.counts.max())
        index = torch.arange(width, device=self.slots.device) - (width - self.counts.unsqueeze(-1))
        return self.slots.int().gather(-1, index.clamp(min=0)).masked_fill(index < 0, -1)

    def where(self, wanted: Tensor) -> Chosen:
        """Those for which `wanted [B, Hkv, S]` holds, in the same order; slot 0 fills."""
        wanted = wanted & self.meant()
        counts = wanted.sum(-1)
        places = torch.arange(max(1, int(counts.max())), device=counts.device) < counts.unsqueeze(-1)
        if torch.equal(wanted[..., : places.shape[-1]], places):
            return Chosen(self.slots[..., : places.shape[-1]].masked_fill(~places, 0), counts)
        slots = torch.zeros(places.shape, dtype=self.slots.dtype, device=counts.device)
        slots[places] = self.slots[wanted]
        return Chosen(slots, counts)
