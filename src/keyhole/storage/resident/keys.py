"""Keys of some slots, found by their slot.

Legend: B batch, Hkv KV heads, E slots kept, S slots asked for, D head size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_NONE = torch.iinfo(torch.int32).max


class KeysBySlot(NamedTuple):
    """`keys [B, Hkv, E, D]` of `slots` int32 `[B, Hkv, E]`, ascending; no slot is as great as the filling."""

    slots: Tensor
    keys: Tensor

    @classmethod
    def of(cls, slots: Tensor, counts: Tensor, keys: Tensor) -> KeysBySlot:
        """Of the first `counts [B, Hkv]` of slots `[B, Hkv, E]` and their keys."""
        filling = torch.arange(slots.shape[-1], device=slots.device) >= counts.unsqueeze(-1)
        return cls(slots.int().masked_fill(filling, _NONE), keys)

    def find(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys `[B, Hkv, S, D]` of `slots [B, Hkv, S]`, any where none are kept; bool, where they are."""
        slots = slots.int().contiguous()
        places = torch.searchsorted(self.slots, slots).clamp(max=self.slots.shape[-1] - 1)
        found = self.slots.gather(-1, places) == slots
        return self.keys.gather(2, places.unsqueeze(-1).expand(*places.shape, self.keys.shape[-1])), found

    def crop(self, length: int) -> KeysBySlot:
        """Without the slots from `length` on."""
        return self._replace(slots=self.slots.masked_fill(self.slots >= length, _NONE))

    def reorder(self, rows: Tensor) -> KeysBySlot:
        """Of the batch rows `rows`, in that order."""
        return KeysBySlot(*(tensor.index_select(0, rows) for tensor in self))

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(tensor.nbytes for tensor in self)
