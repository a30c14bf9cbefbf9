"""Keys and values in host memory, attended to where a resident buffer on the device holds them.

Legend: B batch, H query heads, Hkv KV heads, N tokens, S slots, D and E size of keys and of values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.attention import Logits, Part, attend_slots
from keyhole.storage.base import Footprint, Lookups, Storage
from keyhole.storage.chosen import Chosen
from keyhole.storage.resident.rows import ResidentRows


class PinnedStorage(Storage):
    """`place=host` for a model on a GPU: full precision in pinned memory, behind `ResidentRows`.

    What a step reads is attended to in the resident buffer, whose misses the GPU fetches itself; tokens of
    the window are there anyway. `keys` and `values` of more than the ring take as much memory of the device
    as they are large, while they are in use: in a prompt, a dense step and when an index is built, those
    of one layer at a time, `B * Hkv * N * (D + E)` numbers.
    """

    def __init__(self, rows: ResidentRows) -> None:
        self._rows = rows
        self._size = 0  # D

    @property
    def length(self) -> int:
        return self._rows.length

    def append(self, keys: Tensor, values: Tensor) -> None:
        self._size = keys.shape[-1]
        self._rows.append(torch.cat([keys, values], dim=-1))

    def keys(self, start: int = 0) -> Tensor:
        return self._rows.view(start, slice(0, self._size))

    def values(self, start: int = 0) -> Tensor:
        return self._rows.view(start, slice(self._size, None))

    def attend(self, query: Tensor, slots: Tensor, counts: Tensor, logits: Logits) -> Part:
        chosen = Chosen.of(slots, counts, self._rows.heads)
        pool, places = self._rows.bring(chosen)
        keys, values = pool[..., : self._size], pool[..., self._size :]
        return attend_slots(query, keys, values, places, chosen.counts, logits)

    @property
    def token_bytes(self) -> float:
        return self._rows.view(self.length - 1)[0].nbytes

    @property
    def lookups(self) -> Lookups:
        return self._rows.lookups

    def crop(self, length: int) -> None:
        self._rows.crop(length)

    def reorder(self, rows: Tensor) -> None:
        self._rows.reorder(rows)

    @property
    def footprint(self) -> Footprint:
        return self._rows.footprint
