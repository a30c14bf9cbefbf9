"""Full-precision keys and values on the device of the model."""

from __future__ import annotations

from torch import Tensor

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

    def view(self) -> tuple[Tensor, Tensor]:
        return self._keys.view(), self._values.view()

    def crop(self, length: int) -> None:
        self._keys.crop(length)
        self._values.crop(length)

    def reorder(self, rows: Tensor) -> None:
        self._keys.reorder(rows)
        self._values.reorder(rows)

    def state(self) -> dict[str, Tensor]:
        if self.length == 0:
            return {}
        keys, values = self.view()
        return {"keys": keys, "values": values}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.crop(0)
        if state:
            self.append(state["keys"], state["values"])

    @property
    def footprint(self) -> Footprint:
        return Footprint(device=self._keys.nbytes + self._values.nbytes)
