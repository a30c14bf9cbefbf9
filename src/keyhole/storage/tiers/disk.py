"""Rows on disk, read through a memory map."""

from __future__ import annotations

import zlib
from typing import NoReturn

import numpy as np
from torch import Tensor

from keyhole.storage.tiers.buffer import Buffer, continues
from keyhole.storage.tiers.memory import mapped_bytes
from keyhole.storage.tiers.rowfile import RowFile, raw_bytes

_IN_MEMORY = 64 << 20  # bytes of files the process may have more in memory than when the buffer was made
_COPIED = 1024  # rows written at a time


class DiskBuffer(Buffer):
    """Rows in a nameless file under TMPDIR, see `keyhole.storage.tiers.arena`.

    Each block of `block` rows has a checksum, checked when the block is first read after it was written, and
    again when another process wrote to the file. A disk that returns other bytes later on is not noticed.
    Reordering the batch writes everything again: beam search on disk is slow.
    """

    tier = "disk"

    def __init__(self, block: int) -> None:
        self.block = block
        self._length = 0
        self._file: RowFile | None = None
        self._sum = 0  # of the rows in the block that is not full
        self._unread = np.zeros(0, bool)  # full blocks not read since they were written
        self._mapped_before = mapped_bytes()

    @property
    def length(self) -> int:
        return self._length

    def append(self, rows: Tensor) -> None:
        file = self._file_for(rows)
        file.reserve(self._length + rows.shape[2], self._length)
        for part in rows.detach().split(_COPIED, dim=2):
            data = part.cpu().permute(2, 0, 1, 3).contiguous()
            file.write(self._length, raw_bytes(data))
            self._seal(file, data)
            self._length += data.shape[0]

    def view(self, start: int = 0) -> Tensor:
        file = self._opened()
        self._release(file)
        self._check(file, np.arange(start // self.block, len(self._unread)))
        return file.rows()[start : self._length].permute(1, 2, 0, 3)

    def reading(self, rows: Tensor) -> Tensor:
        file = self._opened()
        self._release(file)
        if self._unread.any():
            reads = np.bincount(rows.cpu().numpy().ravel() // self.block, minlength=len(self._unread))
            self._check(file, reads[: len(self._unread)].nonzero()[0])
        return file.rows()[: self._length].permute(1, 2, 0, 3)

    def uncache(self) -> None:
        """Let the next reads come from the disk, and not from memory of the system (Linux)."""
        if self._file is not None:
            self._file.uncache()

    def crop(self, length: int) -> None:
        if length == 0 and self._file is not None:
            self._forget(self._file.emptied())
        if length >= self._length:
            return
        full, rest = divmod(length, self.block)
        file = self._opened()
        if rest and full < len(self._unread):
            self._check(file, np.arange(full, full + 1))
        elif rest:
            self._check_tail(file)
        self._sum = file.sum(length - rest, length)
        del file.sums[full:]
        self._unread, self._length = self._unread[:full], length

    def reorder(self, rows: Tensor) -> None:
        if self._length == 0:
            return
        held = self.view()
        if rows.tolist() == list(range(held.shape[0])):
            return
        self._forget(None)
        for part in held.split(_COPIED, dim=2):  # into another extent, so `held` stays
            self.append(part.index_select(0, rows.cpu()))

    def __deepcopy__(self, memo: dict[int, object]) -> DiskBuffer:
        """Rows in an extent of their own."""
        other = DiskBuffer(self.block)
        if self._length:
            for part in self.view().split(_COPIED, dim=2):
                other.append(part)
        return other

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            "keys and values on disk cannot be pickled; write the cache with `cache.save(path)` and read it "
            "with `KeyholeCache.load(path, model)`"
        )

    @property
    def nbytes(self) -> int:
        """Bytes written; spare capacity takes no space."""
        return 0 if self._file is None else self._length * self._file.row_bytes

    def _file_for(self, rows: Tensor) -> RowFile:
        """The file that `rows` continue, or a new one for the first rows."""
        if self._file is not None and self._length:
            self._look(self._file)
            continues(self._file.rows()[:1].permute(1, 2, 0, 3), rows[:, :, :0].cpu(), self._length)
            return self._file
        batch, heads, _, width = rows.shape
        self._file = RowFile((batch, heads, width), rows.dtype, self.block)
        return self._file

    def _opened(self) -> RowFile:
        if self._file is None:
            raise ValueError("the buffer is empty; append first")
        self._look(self._file)
        return self._file

    def _look(self, file: RowFile) -> None:
        """Check everything again if another process wrote to the file."""
        if file.changed():
            self._unread[:] = True
            self._check_tail(file)

    def _forget(self, file: RowFile | None) -> None:
        """Go on without rows, in another file."""
        self._file, self._length, self._sum = file, 0, 0
        self._unread = self._unread[:0]

    def _seal(self, file: RowFile, data: Tensor) -> None:
        """Go on with the checksum of the newest block through `data`, and write those of full blocks."""
        at, sealed = self._length, len(file.sums)
        stop = at + data.shape[0]
        while at < stop:
            end = min((at // self.block + 1) * self.block, stop)
            piece = data[at - self._length : end - self._length]
            self._sum = zlib.crc32(raw_bytes(piece), self._sum)
            if end % self.block == 0:
                file.sums.append(self._sum)
                self._sum = 0
            at = end
        self._unread = np.append(self._unread, np.ones(len(file.sums) - sealed, bool))

    def _check(self, file: RowFile, blocks: np.ndarray) -> None:
        """Check those of the full `blocks` that were not read yet."""
        unread = blocks[self._unread[blocks]]
        file.check(unread.tolist())
        self._unread[unread] = False

    def _check_tail(self, file: RowFile) -> None:
        """Check the newest rows, which do not fill a block."""
        full = len(self._unread)
        if file.sum(full * self.block, self._length) != self._sum:
            raise file.damaged(full)

    def _release(self, file: RowFile) -> None:
        """Keep the memory bounded in which files are read; its pages may have to be read again.

        Measured, since one page that is read may bring two megabytes.
        """
        if mapped_bytes() - self._mapped_before > _IN_MEMORY:
            file.release()
