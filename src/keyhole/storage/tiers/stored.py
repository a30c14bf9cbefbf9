"""Rows of a stored text, fetched when a step reads them, and rows that come behind them.

Legend: B = 1 batch, H heads, n rows of a block, N rows held, W width of a row.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn, Protocol

import numpy as np
import torch
from torch import Tensor

from keyhole.core.errors import UnsupportedCacheError
from keyhole.storage.tiers.buffer import Buffer

_FEW = 16  # newest rows, which are read without the block around them


class RowBlock(Protocol):
    """Stored rows `[H, n, W]`. What is given is what was written, or DamagedStorageError is raised."""

    @property
    def length(self) -> int:
        """n, at least 1."""
        ...

    def some(self, heads: Tensor, rows: Tensor) -> Tensor:
        """Rows `[S, W]` of int64 `heads [S]` and `rows [S]`."""
        ...

    def whole(self) -> Tensor:
        """All of them."""
        ...


class StoredBuffer(Buffer):
    """Rows of blocks, each read when it is asked for first, and rows appended behind them in memory.

    What was read stays in memory, within about `most` bytes; then all of it is let go of at the next
    `reading`, so that what an earlier call gave must not be used any more.
    """

    tier = "disk"

    def __init__(self, blocks: Sequence[RowBlock], like: Tensor, *, most: int, spare: int) -> None:
        """`like [H, 0, W]` is on the CPU and says heads, width and type.

        Before more than `spare` rows have come behind the stored ones, nothing is moved; what is not used of
        them takes no memory.
        """
        self.blocks, self.most, self.spare = tuple(blocks), most, spare
        lengths = [block.length for block in self.blocks]
        self._starts = np.cumsum([0, *lengths])
        self._stored = self._length = int(self._starts[-1])
        heads, _, width = like.shape
        self._memory, self._data = _untouched((heads, self._stored + spare, width), like.dtype)
        self._there = np.zeros((heads, self._stored), bool)
        self._fetched = 0  # rows of one head
        self._row_bytes = width * like.itemsize
        self.read_rows = 0  # rows of one head that were fetched so far, for those who count

    @property
    def length(self) -> int:
        return self._length

    @property
    def stored(self) -> int:
        """Rows that are in the blocks."""
        return self._stored

    def append(self, rows: Tensor) -> None:
        count = rows.shape[2]
        self._check(rows)
        if self._length + count > self._data.shape[1]:
            self._grow(count)
        self._data[:, self._length : self._length + count] = rows[0].to(self._data.device)
        self._length += count

    def view(self, start: int = 0) -> Tensor:
        if self._stored - _FEW <= start < self._stored:
            rows, heads = np.arange(start, self._stored), np.arange(self._data.shape[0])
            self._fetch((rows + heads[:, None] * self._stored).ravel())
        elif start < self._stored:
            self._fetch_whole(start)
        return self._data[None, :, start : self._length]

    def reading(self, rows: Tensor) -> Tensor:
        self._let_go()
        wanted = rows.detach().cpu().numpy()
        heads = self._data.shape[0]
        if wanted.ndim == 3 and wanted.shape[1] == heads:
            places = (wanted[0] + np.arange(heads)[:, None] * self._stored).ravel()
            inside = wanted[0].ravel() < self._stored
        else:
            each = wanted.ravel()
            places = (each + np.arange(heads)[:, None] * self._stored).ravel()
            inside = np.tile(each < self._stored, heads)
        self._fetch(places[inside])
        return self._data[None, :, : self._length]

    def crop(self, length: int) -> None:
        self._length = min(self._length, length)
        if length < self._stored:
            self._stored = length
            self._there = self._there[:, :length]
            self._fetched = int(self._there.sum())

    def reorder(self, rows: Tensor) -> None:
        if rows.tolist() != [0]:
            raise UnsupportedCacheError(
                "a stored document that is read from disk serves one sequence; open it with place='host' or "
                "place='device' for batches and beams"
            )

    def __deepcopy__(self, memo: dict[int, object]) -> StoredBuffer:
        other = StoredBuffer(self.blocks, self._data[:, :0], most=self.most, spare=self.spare)
        other.crop(self._stored)
        behind = self._data[None, :, self._stored : self._length]
        if behind.shape[2]:
            other.append(behind)
        return other

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("rows of a stored document cannot be pickled; open the document again")

    @property
    def nbytes(self) -> int:
        """Of the rows, wherever they are."""
        return self._length * self._data.shape[0] * self._row_bytes

    def _check(self, rows: Tensor) -> None:
        shape = (1, self._data.shape[0], rows.shape[2], self._data.shape[2])
        if tuple(rows.shape) != shape or rows.dtype != self._data.dtype:
            raise ValueError(
                f"rows {list(rows.shape)} of {rows.dtype} do not continue a stored text of {list(shape)} of "
                f"{self._data.dtype}"
            )

    def _fetch(self, places: np.ndarray) -> None:
        """Read what is missing of `places`, head times stored rows plus row."""
        wanted = np.zeros(self._there.shape, bool)
        wanted.reshape(-1)[places] = True
        wanted &= ~self._there
        starts = self._starts[:-1][self._starts[:-1] < self._stored]
        for block in np.flatnonzero(np.logical_or.reduceat(wanted.any(0), starts)).tolist():
            begin = int(starts[block])
            inside = np.nonzero(wanted[:, begin : begin + self.blocks[block].length])
            heads, rows = (torch.from_numpy(each) for each in inside)
            self._data[heads, rows + begin] = self.blocks[block].some(heads, rows)
            self._there[:, begin : begin + self.blocks[block].length][inside] = True
            self._fetched += len(rows)
            self.read_rows += len(rows)

    def _fetch_whole(self, start: int) -> None:
        for block, (begin, stop) in enumerate(zip(self._starts, self._starts[1:], strict=False)):
            stop = min(stop, self._stored)
            if stop <= start or begin >= stop or self._there[:, begin:stop].all():
                continue
            self._data[:, begin:stop] = self.blocks[block].whole()[:, : stop - begin]
            new = int((~self._there[:, begin:stop]).sum())
            self._there[:, begin:stop] = True
            self._fetched += new
            self.read_rows += new

    def _let_go(self) -> None:
        """Forget what was read, once it is more than may stay."""
        if self._fetched * self._row_bytes <= self.most:
            return
        with suppress(
            AttributeError, OSError, ValueError
        ):  # no such call: the memory stays until overwritten
            for head in range(self._data.shape[0]):
                begin = head * self._data.shape[1] * self._row_bytes
                first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
                last = (begin + self._stored * self._row_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
                if last > first:
                    self._memory.madvise(mmap.MADV_DONTNEED, first, last - first)
        self._there[:] = False
        self._fetched = 0

    def _grow(self, count: int) -> None:
        held = self._data
        shape = (held.shape[0], 2 * (self._length + count), held.shape[2])
        self._memory, self._data = _untouched(shape, held.dtype)
        self._data[:, self._stored : self._length] = held[:, self._stored : self._length]
        self._there[:] = False
        self._fetched = 0


def _untouched(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[mmap.mmap, Tensor]:
    """Memory that takes no room before it is written to, in small pages, and a tensor over it."""
    nbytes = math.prod(shape) * dtype.itemsize
    flags = {}
    if hasattr(mmap, "MAP_PRIVATE"):
        flags["flags"] = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    memory = mmap.mmap(-1, max(nbytes, mmap.PAGESIZE), **flags)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with suppress(OSError):
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory, torch.frombuffer(memory, dtype=dtype, count=math.prod(shape)).view(shape)
