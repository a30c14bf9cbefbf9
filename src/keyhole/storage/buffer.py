"""A tensor that grows in place along its slot dimension."""

from __future__ import annotations

from torch import Tensor

from keyhole.storage.memory import empty

_FIRST_CAPACITY = 256


class GrowingBuffer:
    """Rows appended along dimension 2 of `[B, H, capacity, D]`, the capacity doubling when it is full.

    Appending one token writes one token; the whole is copied only at the doublings. Memory beyond
    `length` is uninitialised.
    """

    def __init__(self) -> None:
        self._data: Tensor | None = None
        self.length = 0

    def append(self, rows: Tensor) -> None:
        """Append `rows [B, H, T, D]`."""
        self._check(rows)
        stop = self.length + rows.shape[2]
        if self._data is None or stop > self._data.shape[2]:
            self._grow(rows, stop)
        assert self._data is not None
        self._data[:, :, self.length : stop] = rows
        self.length = stop

    def view(self) -> Tensor:
        """What is held, `[B, H, length, D]`, without a copy."""
        if self._data is None:
            raise ValueError("the buffer is empty; append first")
        return self._data[:, :, : self.length]

    def crop(self, length: int) -> None:
        self.length = min(self.length, length)

    def reorder(self, rows: Tensor) -> None:
        """Take batch rows `rows`, in that order; repeats and omissions allowed."""
        if self._data is not None:
            self._data = self._data.index_select(0, rows.to(self._data.device))

    @property
    def nbytes(self) -> int:
        """Bytes allocated, spare capacity included."""
        return 0 if self._data is None else self._data.nbytes

    def _check(self, rows: Tensor) -> None:
        """Refuse rows that do not continue what is held; an emptied buffer starts anew for any."""
        if self._data is None:
            return
        held, given = self._data[:, :, :0], rows[:, :, :0]
        same = held.shape == given.shape and held.dtype == given.dtype and held.device == given.device
        if self.length == 0 and not same:
            self._data = None
        elif held.shape != given.shape:
            raise ValueError(f"rows {list(rows.shape)} do not continue a buffer of {list(self.view().shape)}")

    def _grow(self, rows: Tensor, needed: int) -> None:
        old = self._data
        # A prompt is stored once, with room to generate; doubling starts when that is used up.
        capacity = needed + _FIRST_CAPACITY if old is None else max(needed, 2 * old.shape[2])
        batch, heads, _, width = rows.shape
        grown = empty((batch, heads, capacity, width), rows.dtype, rows.device)
        if old is not None:
            grown[:, :, : self.length] = old[:, :, : self.length]
        self._data = grown
