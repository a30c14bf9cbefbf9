"""Rows that grow along their slot dimension, on one tier.

Legend: B batch, H heads, N rows held, W width of a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from keyhole.kernels import drop_slots
from keyhole.storage.tiers.memory import empty

SPARE = 256  # tokens


class Buffer(ABC):
    """Rows appended along dimension 2 of `[B, H, N, W]`. `tier` is a field of Footprint."""

    tier: str

    @property
    @abstractmethod
    def length(self) -> int:
        """Rows held."""

    @abstractmethod
    def append(self, rows: Tensor) -> None:
        """Append `rows [B, H, T, W]`; an emptied buffer accepts rows of any shape and type.

        Raises:
            ValueError: the rows do not continue what is held.
        """

    @abstractmethod
    def view(self, start: int = 0) -> Tensor:
        """Rows from `start` on, `[B, H, length - start, W]`, without a copy where they lie.

        Raises:
            ValueError: nothing was appended yet.
            DamagedStorageError: what is there is not what was written.
        """

    def reading(self, rows: Tensor) -> Tensor:  # noqa: ARG002
        """All that is held, as `view`, of which only `rows` (integers of any shape) are about to be read."""
        return self.view()

    @abstractmethod
    def crop(self, length: int) -> None:
        """Forget the rows from `length` on."""

    @abstractmethod
    def reorder(self, rows: Tensor) -> None:
        """Take batch rows `rows`, in that order; repeats and omissions allowed."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes taken on the tier."""


class GrowingBuffer(Buffer):
    """Memory whose capacity doubles when it is full.

    Appending one token writes one token; the whole is copied only at the doublings. Memory beyond
    `length` is uninitialised. At first there is room for `spare` more rows.
    """

    tier = "device"

    def __init__(self, spare: int = SPARE) -> None:
        self._spare = spare
        self._data: Tensor | None = None
        self._length = 0

    @property
    def length(self) -> int:
        return self._length

    def append(self, rows: Tensor) -> None:
        self._copy(rows, self.room_for(rows))

    def room_for(self, rows: Tensor) -> Tensor:
        """Where `rows` belong, `[B, H, T, W]`, for the caller to write; they count as held from now on."""
        self._check(rows)
        start, stop = self._length, self._length + rows.shape[2]
        if self._data is None or stop > self._data.shape[2]:
            self._grow(rows, stop)
        assert self._data is not None
        self._length = stop
        return self._data[:, :, start:stop]

    def view(self, start: int = 0) -> Tensor:
        if self._data is None:
            raise ValueError("the buffer is empty; append first")
        return self._data[:, :, start : self._length]

    @property
    def memory(self) -> Tensor | None:
        """All of the memory, `[B, H, capacity, W]`, of which the first `length` rows are held."""
        return self._data

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, all heads of a batch row together.

        Raises:
            ValueError: nothing was appended yet.
        """
        held = self.view()
        return held.shape[1] * held.shape[3] * held.element_size()

    def reserve(self, rows: int) -> None:
        """Make room for so many rows in all, so that they stay where they are when more come.

        Raises:
            ValueError: nothing was appended yet.
        """
        held = self.view()
        if self._data is None or rows > self._data.shape[2]:
            self._data = self._moved(held, rows)

    def extend(self, length: int) -> None:
        """Hold so many rows in all, in memory that was reserved; the new ones are `put` there."""
        self._length = length

    def put(self, rows: Tensor, places: Tensor) -> None:
        """Write `rows [B, H, T, W]` at int64 `places [T]` of what is held, without waiting for them."""
        held = self.view()
        held.index_copy_(2, places, rows.to(held.dtype))

    def crop(self, length: int) -> None:
        self._length = min(self._length, length)
        if not self._length and self._data is not None:
            self._data = self._data[:, :, :0].clone()  # memory goes back

    def reorder(self, rows: Tensor) -> None:
        if self._data is not None:
            self._data = self._data.index_select(0, rows.to(self._data.device))

    def drop(self, rows: Tensor) -> None:
        """Forget one row of each head, int64 `[B, H]`; those behind it move up."""
        drop_slots(self.view(), rows)
        self._length -= 1

    @property
    def nbytes(self) -> int:
        """Bytes allocated, spare capacity included."""
        return 0 if self._data is None else self._data.nbytes

    def _check(self, rows: Tensor) -> None:
        if self._data is not None and not continues(self._data, rows, self._length):
            self._data = None

    def _copy(self, rows: Tensor, target: Tensor) -> None:
        target.copy_(rows)

    def _grow(self, rows: Tensor, needed: int) -> None:
        # A prompt is stored once, with room to generate; doubling starts when that is used up.
        held = 0 if self._data is None else self._data.shape[2]
        self._data = self._moved(rows, max(needed, 2 * held) if held else needed + self._spare)

    def _moved(self, rows: Tensor, capacity: int) -> Tensor:
        """Memory for so many rows such as these, beginning with what is held."""
        batch, heads, _, width = rows.shape
        larger = self._allocate((batch, heads, capacity, width), rows)
        if self._data is not None:
            larger[:, :, : self._length] = self._data[:, :, : self._length]
        return larger

    def _allocate(self, shape: tuple[int, ...], rows: Tensor) -> Tensor:
        return empty(shape, rows.dtype, rows.device)


def continues(held: Tensor, rows: Tensor, length: int) -> bool:
    """Whether `rows` go on where `held`, filled to `length`, ends; if not, an emptied buffer starts again.

    Raises:
        ValueError: they do not, and something is held.
    """
    shapes = (held.shape[:2], held.shape[3]), (rows.shape[:2], rows.shape[3])
    same = shapes[0] == shapes[1] and held.dtype == rows.dtype and held.device == rows.device
    if length and shapes[0] != shapes[1]:
        held_shape = [*held.shape[:2], length, held.shape[3]]
        raise ValueError(f"rows {list(rows.shape)} do not continue a buffer of {held_shape}")
    return same or length > 0
