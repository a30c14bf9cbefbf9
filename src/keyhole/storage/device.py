"""Full-precision keys and values on the device of the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from keyhole.attention import Logits, Part, attend_slots, merge
from keyhole.kernels.attention.append import PreparedAppend, prepared_append
from keyhole.kernels.attention.prepared import PreparedAttention, prepared
from keyhole.storage.base import CapturableStorage, Footprint
from keyhole.storage.tiers.buffer import GrowingBuffer


class DeviceStorage(CapturableStorage):
    """Two buffers that grow in place, on the device the keys arrive on.

    Where the native library reads and writes them, a step is calls whose operands stay filled in, until the
    buffers move.
    """

    def __init__(self) -> None:
        self._keys, self._values = GrowingBuffer(), GrowingBuffer()
        self._attention: PreparedAttention | None = None
        self._append: PreparedAppend | None = None
        self._prepared_for: tuple[Tensor | None, Tensor | None] = None, None  # the buffers' memory
        self._token_bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        # Addresses are no part of a copy.
        return self.__dict__ | {"_attention": None, "_append": None, "_prepared_for": (None, None)}

    @property
    def length(self) -> int:
        return self._keys.length

    @property
    def device(self) -> torch.device:
        return self._keys.view().device

    @property
    def heads(self) -> int:
        return self._keys.view().shape[1]

    def append(self, keys: Tensor, values: Tensor) -> None:
        self._keys.append(keys)
        self._values.append(values)

    def append_finite(self, keys: Tensor, values: Tensor) -> bool:
        self._prepare()
        length, room = self._keys.length, self._append
        if room is None or length + keys.shape[2] > room.keys.shape[2] or not room.takes(keys, values):
            return super().append_finite(keys, values)
        if not room.append(keys, values, length):
            return False
        self.extend(length + keys.shape[2])
        return True

    @property
    def attention(self) -> PreparedAttention | None:
        """The native calls over what is held, the same until memory moves; None where there are none."""
        self._prepare()
        return self._attention

    def _prepare(self) -> None:
        """Bring the native calls to where the buffers are."""
        keys, values = self._keys.memory, self._values.memory
        if keys is self._prepared_for[0] and values is self._prepared_for[1]:
            return
        self._prepared_for = keys, values
        self._attention = self._append = None
        if keys is not None and values is not None:
            self._attention, self._append = prepared(keys, values), prepared_append(keys, values)
            self._token_bytes = self._keys.row_bytes + self._values.row_bytes

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

    def picked(self, slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.keys(), self.values(), slots

    def attend(self, query: Tensor, slots: Tensor, counts: Tensor, logits: Logits) -> Part:
        return self._attend(query, slots, counts, logits, None)

    def attend_beside(self, part: Part, query: Tensor, slots: Tensor, counts: Tensor, logits: Logits) -> Part:
        return self._attend(query, slots, counts, logits, part)

    def _attend(
        self, query: Tensor, slots: Tensor, counts: Tensor, logits: Logits, before: Part | None
    ) -> Part:
        self._prepare()
        if self._attention is None or slots.dim() != 3 or not self._attention.takes(query):
            found = attend_slots(query, self.keys(), self.values(), slots, counts, logits)
            return found if before is None else merge(before, found)
        scale, softcap, _ = logits
        return Part(
            *self._attention.attend(
                query, self.length, slots, counts, scale=scale, softcap=softcap, before=before
            )
        )

    @property
    def token_bytes(self) -> float:
        self._prepare()
        return self._token_bytes if self._attention else self._keys.row_bytes + self._values.row_bytes

    def crop(self, length: int) -> None:
        self._keys.crop(length)
        self._values.crop(length)

    def reorder(self, rows: Tensor) -> None:
        self._keys.reorder(rows)
        self._values.reorder(rows)

    @property
    def footprint(self) -> Footprint:
        return Footprint(device=self._keys.nbytes + self._values.nbytes)
