"""Full-precision keys and values on the device of the model."""

from __future__ import annotations

from torch import Tensor

from keyhole.attention import Logits, Part, attend_slots
from keyhole.storage.base import Footprint, Storage
from keyhole.storage.buffer import GrowingBuffer


class DeviceStorage(Storage):
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
        return self._keys.view()[:, :, start:]

    def values(self, start: int = 0) -> Tensor:
        return self._values.view()[:, :, start:]

    def reserve(self, tokens: int) -> None:
        """Make room for so many tokens in all, so that they stay where they are when more come."""
        self._keys.reserve(tokens)
        self._values.reserve(tokens)

    def extend(self, length: int) -> None:
        """Hold so many tokens in all, in memory that was reserved; the caller writes the new ones."""
        self._keys.extend(length)
        self._values.extend(length)

    def attend(self, query: Tensor, slots: Tensor, counts: Tensor, logits: Logits) -> Part:
        return attend_slots(query, self.keys(), self.values(), slots, counts, logits)

    @property
    def token_bytes(self) -> float:
        return sum(tensor[0, :, :1].nbytes for tensor in (self.keys(), self.values()))

    def crop(self, length: int) -> None:
        self._keys.crop(length)
        self._values.crop(length)

    def reorder(self, rows: Tensor) -> None:
        self._keys.reorder(rows)
        self._values.reorder(rows)

    @property
    def footprint(self) -> Footprint:
        return Footprint(device=self._keys.nbytes + self._values.nbytes)
