"""Rows in an extent of the file on disk, with a checksum for each full block of them."""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

from keyhole.core.errors import DamagedStorageError
from keyhole.storage.tiers.arena import Extent, arena

_ROOM = 4  # times the rows that are needed; space is only taken by those that are written
_COPIED = 64 << 20  # bytes moved at a time to a larger extent


class RowFile:
    """Rows `[B, H, W]` on disk, written to the file and read through a map, in blocks of `block` rows.

    What is written does not count as memory of the process; what is read does until `release`, and the
    kernel may take it back at any time. `sums` are the CRC-32 of full blocks.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, block: int) -> None:
        self.shape, self.dtype, self.block = shape, dtype, block
        self.row_bytes = math.prod(shape) * dtype.itemsize
        self.sums: list[int] = []
        self._capacity = 0
        self._extent: Extent | None = None
        self._seen = 0
        self._broken = False

    def emptied(self) -> RowFile:
        """One for other rows such as these."""
        return RowFile(self.shape, self.dtype, self.block)

    def changed(self) -> bool:
        """Whether another process may have written to the file since this was last asked.

        Raises:
            DamagedStorageError: the file was cut short, or a write to it failed.
            UnsupportedCacheError: in a forked process.
        """
        if self._extent is None:
            return False
        extent = self._extent
        if self._broken:
            raise extent.arena.damaged("an earlier write failed")
        seen, self._seen = self._seen, extent.arena.look()
        return seen != self._seen

    def rows(self) -> Tensor:
        """All there is room for, `[capacity, B, H, W]`; a view of the file."""
        if self._extent is None:
            return torch.empty(0, *self.shape, dtype=self.dtype)
        flat = self._extent.memory[: self._capacity * self.row_bytes].view(self.dtype)
        return flat.view(self._capacity, *self.shape)

    def reserve(self, rows: int, held: int) -> None:
        """Make room for so many rows, of which `held` are there; if they do not fit, they move.

        Raises:
            OSError: the disk is full or broken, with the directory.
        """
        if rows <= self._capacity:
            return
        capacity, old = _ROOM * rows, self._extent
        extent = arena().extent(capacity * self.row_bytes)
        if old is not None:
            _copy(old, extent, held * self.row_bytes)
        self._extent, self._capacity, self._seen = extent, capacity, extent.arena.foreign

    def write(self, start: int, rows: memoryview) -> None:
        """Write rows from `start` on; there must be room.

        Raises:
            OSError: the disk is full or broken, with the directory; the rows cannot be used any more.
        """
        self._broken = True
        self._known().write(start * self.row_bytes, rows)
        self._broken = False

    def check(self, blocks: list[int]) -> None:
        """Raise DamagedStorageError unless the full blocks are what was written."""
        for block in blocks:
            if self.sum(block * self.block, (block + 1) * self.block) != self.sums[block]:
                raise self.damaged(block)

    def damaged(self, block: int) -> DamagedStorageError:
        return self._known().arena.damaged(f"block {block} does not match its checksum")

    def sum(self, start: int, stop: int) -> int:
        """The checksum of rows [start, stop)."""
        return zlib.crc32(self._known().read(start * self.row_bytes, (stop - start) * self.row_bytes))

    def release(self) -> None:
        """Let go of the memory in which the rows were read."""
        if self._extent is not None:
            self._extent.release()

    def uncache(self) -> None:
        """Let the next reads come from the disk, and not from memory of the system (Linux)."""
        if self._extent is not None:
            self._extent.uncache()

    def _known(self) -> Extent:
        if self._extent is None:
            raise ValueError("there is no room yet; call reserve first")
        return self._extent


def _copy(source: Extent, target: Extent, nbytes: int) -> None:
    for at in range(0, nbytes, _COPIED):
        target.write(at, memoryview(source.read(at, min(_COPIED, nbytes - at))))


def raw_bytes(rows: Tensor) -> memoryview:
    """The memory of a contiguous tensor of any type."""
    return rows.flatten().view(torch.uint8).numpy().data
