"""Full-precision keys and values on the device of the model."""

from __future__ import annotations

from torch import Tensor

from keyhole.attention import Logits, Part, attend_slots
from keyhole.storage.base import CapturableStorage, Footprint
from keyhole.storage.tiers.buffer import GrowingBuffer


class DeviceStorage(CapturableStorage):
    """Two buffers that grow in place, on the device the keys arrive on."""

    def __init__(self) -> None:
        self._keys, self._values = GrowingBuffer(), GrowingBuffer()

    @property
    def length(self) -> int:
        return self._keys.length

    def append(self, keys: Tensor, values: Tensor) -> None:
        self._keys.append(keys)
        self._values.append(values)

    def keys(self, start: int = 0) -> Tensor:
        return self._keys.view(start)

    def values(self, start: int = 0) -> Tensor:
        return self._values.view(start)

    def reserve(self, tokens: int) -> None:
        self._keys.reserve(tokens)
        self._values.reserve(tokens)

    def extend(self, length: int) -> None:
        self._keys.extend(length)
        self._values.extend(length)

    def put(self, keys: Tensor, values: Tensor, slot: Tensor) -> None:
        self._keys.put(keys, slot)
        self._values.put(values, slot)

    def keys_at(self, slots: Tensor) -> Tensor:
        return self.keys().index_select(2, slots)

    def attend(self, query: Tensor, slots: Tensor, counts: Tensor, logits: Logits) -> Part:
        return attend_slots(query, self.keys(), self.values(), slots, counts, logits)

    @property
    def token_bytes(self) -> float:
        return self._keys.row_bytes + self._values.row_bytes

    def crop(self, length: int) -> None:
        self._keys.crop(length)
        self._values.crop(length)

    def reorder(self, rows: Tensor) -> None:
        self._keys.reorder(rows)
        self._values.reorder(rows)

    @property
    def footprint(self) -> Footprint:
        return Footprint(device=self._keys.nbytes + self._values.nbytes)
