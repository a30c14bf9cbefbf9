"""Rows on disk, read through a memory map."""

from __future__ import annotations

import shutil
import tempfile
import weakref
import zlib
from pathlib import Path

import numpy as np
from torch import Tensor

from keyhole.storage.tiers.buffer import Buffer, continues
from keyhole.storage.tiers.memory import mapped_bytes
from keyhole.storage.tiers.rowfile import RowFile, raw_bytes

_IN_MEMORY = 64 << 20  # bytes of files the process may have more in memory than when the buffer was made
_COPIED = 1024  # rows written at a time


class DiskBuffer(Buffer):
    """Rows in a private directory under TMPDIR, which goes when the buffer does.

    Each block of `block` rows has a checksum, checked when the block is first read after it was written.
    Reordering the batch writes everything anew: beam search on disk is slow.
    """

    tier = "disk"

    def __init__(self, block: int) -> None:
        self.block = block
        self._length = 0
        self._file: RowFile | None = None
        self._files = 0  # made so far
        self._directory: Path | None = None
        self._sum = 0  # of the rows in the block that is not full
        self._unread = np.zeros(0, bool)  # full blocks not read since they were written
        self._mapped_before = mapped_bytes()

    @property
    def length(self) -> int:
        return self._length

    @property
    def path(self) -> Path | None:
        """The file of rows."""
        return None if self._file is None else self._file.path

    def append(self, rows: Tensor) -> None:
        file = self._file_for(rows)
        file.reserve(self._length + rows.shape[2])
        for part in rows.detach().split(_COPIED, dim=2):
            data = part.cpu().permute(2, 0, 1, 3).contiguous()
            file.write(self._length, raw_bytes(data))
            self._seal(file, data)
            self._length += data.shape[0]

    def view(self, start: int = 0) -> Tensor:
        file = self._opened()
        self._release(file)
        rows = file.rows()[start : self._length]
        self._check(file, np.arange(start // self.block, len(self._unread)))
        return rows.permute(1, 2, 0, 3)

    def reading(self, rows: Tensor) -> Tensor:
        file = self._opened()
        self._release(file)
        held = file.rows()[: self._length]
        if self._unread.any():
            reads = np.bincount(rows.cpu().numpy().ravel() // self.block, minlength=len(self._unread))
            self._check(file, reads[: len(self._unread)].nonzero()[0])
        return held.permute(1, 2, 0, 3)

    def crop(self, length: int) -> None:
        if length >= self._length:
            return
        full, rest = divmod(length, self.block)
        file = self._opened()
        if rest:
            self._check(file, np.arange(full, min(full + 1, len(self._unread))))
        self._sum = file.sum(length - rest, length)
        self._unread, self._length = self._unread[:full], length

    def reorder(self, rows: Tensor) -> None:
        if self._length == 0:
            return
        old, held = self._opened(), self.view()
        if rows.tolist() == list(range(held.shape[0])):
            return
        self._forget()
        for part in held.split(_COPIED, dim=2):  # into another file, so `held` stays
            self.append(part.index_select(0, rows.cpu()))
        old.remove()

    def __deepcopy__(self, memo: dict[int, object]) -> DiskBuffer:
        """Rows in a directory of their own."""
        other = DiskBuffer(self.block)
        if self._length:
            for part in self.view().split(_COPIED, dim=2):
                other.append(part)
        return other

    @property
    def nbytes(self) -> int:
        """Bytes written; spare capacity takes no space."""
        return 0 if self._file is None else self._length * self._file.row_bytes

    def _file_for(self, rows: Tensor) -> RowFile:
        """The file that `rows` continue, or a new one."""
        if self._file is not None:
            held = self._file.rows()[:1].permute(1, 2, 0, 3)
            if continues(held, rows[:, :, :0].cpu(), self._length):
                return self._file
            self._file.remove()
            self._forget()
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="keyhole-"))
            weakref.finalize(self, shutil.rmtree, self._directory, ignore_errors=True)
        batch, heads, _, width = rows.shape
        path = self._directory / f"rows{self._files}"
        self._file = RowFile(path, (batch, heads, width), rows.dtype, self.block)
        self._files += 1
        return self._file

    def _opened(self) -> RowFile:
        if self._file is None:
            raise ValueError("the buffer is empty; append first")
        return self._file

    def _forget(self) -> None:
        self._file, self._length, self._sum = None, 0, 0
        self._unread = self._unread[:0]

    def _seal(self, file: RowFile, data: Tensor) -> None:
        """Go on with the checksum of the newest block through `data`, and write those of full blocks."""
        first, at, sums = self._length // self.block, self._length, []
        stop = at + data.shape[0]
        while at < stop:
            end = min((at // self.block + 1) * self.block, stop)
            piece = data[at - self._length : end - self._length]
            self._sum = zlib.crc32(raw_bytes(piece), self._sum)
            if end % self.block == 0:
                sums.append(self._sum)
                self._sum = 0
            at = end
        if sums:
            file.seal(first, sums)
            self._unread = np.append(self._unread, np.ones(len(sums), bool))

    def _check(self, file: RowFile, blocks: np.ndarray) -> None:
        """Check those of the full `blocks` that were not read yet."""
        unread = blocks[self._unread[blocks]]
        file.check(unread.tolist())
        self._unread[unread] = False

    def _release(self, file: RowFile) -> None:
        """Keep the memory bounded in which files are read; what lies in it may have to be read again.

        Measured, since one page that is read may bring two megabytes.
        """
        if mapped_bytes() - self._mapped_before > _IN_MEMORY:
            file.release()
