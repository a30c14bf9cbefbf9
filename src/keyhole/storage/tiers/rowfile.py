"""A file of rows, mapped into memory: a header, then row after row. Checksums lie in a file beside it.

Layout of `<name>`: 4,096 bytes of JSON filled up with spaces, then rows `[capacity, B, H, W]`.
Layout of `<name>.sums`: the CRC-32 of each full block of rows, little-endian, four bytes each.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
import zlib
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from keyhole.core.errors import DamagedStorageError

_HEADER = 4096
_FORMAT = {"format": "keyhole rows", "version": 1}


class RowFile:
    """Rows `[B, H, W]` on disk, written to the file and read through a map, in blocks of `block` rows.

    What is written does not count as memory of the process; what is read does until `release`, and the
    kernel may take it back at any time.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: torch.dtype, block: int) -> None:
        self.path, self.shape, self.dtype, self.block = path, shape, dtype, block
        self.row_bytes = math.prod(shape) * dtype.itemsize
        self._sums = path.with_name(path.name + ".sums")
        self._capacity = 0
        self._map: mmap.mmap | None = None
        self._rows = torch.empty(0, *shape, dtype=dtype)
        path.write_bytes(self._header())
        self._sums.touch()

    def rows(self) -> Tensor:
        """All there is room for, `[capacity, B, H, W]`; a view of the file.

        Raises:
            DamagedStorageError: the file is shorter than it was made.
        """
        self._check_size()
        return self._rows

    def reserve(self, rows: int) -> None:
        """Make room for so many rows. The file grows in place; disk space is taken as rows are written."""
        if rows <= self._capacity:
            return
        self._check_size()
        self._capacity = max(rows, 2 * self._capacity)
        size = _HEADER + self._capacity * self.row_bytes
        with self.path.open("r+b") as file:
            file.truncate(size)
            self._map = mmap.mmap(file.fileno(), size)
        if self._map[:_HEADER] != self._header():
            raise self._damaged("its header is not what was written")
        flat = torch.frombuffer(self._map, dtype=self.dtype, offset=_HEADER)
        self._rows = flat.view(self._capacity, *self.shape)

    def write(self, start: int, rows: memoryview) -> None:
        """Write rows from `start` on; there must be room."""
        self._check_size()
        with self.path.open("r+b") as file:
            file.seek(_HEADER + start * self.row_bytes)
            file.write(rows)

    def seal(self, first: int, sums: list[int]) -> None:
        """Write the checksums of full blocks from `first` on."""
        with self._sums.open("r+b") as file:
            file.seek(4 * first)
            file.write(struct.pack(f"<{len(sums)}I", *sums))

    def check(self, blocks: list[int]) -> None:
        """Raise DamagedStorageError unless the blocks are what was written."""
        sums = self._sums.read_bytes() if self._sums.exists() else b""
        for block in blocks:
            found = self.sum(block * self.block, (block + 1) * self.block)
            if struct.pack("<I", found) != sums[4 * block : 4 * block + 4]:
                raise self._damaged(f"block {block} does not match its checksum")

    def sum(self, start: int, stop: int) -> int:
        """The checksum of rows [start, stop); raises as `rows`."""
        self._check_size()
        # Not through the map, which would keep in memory what is only passed over.
        with self.path.open("rb") as file:
            file.seek(_HEADER + start * self.row_bytes)
            return zlib.crc32(file.read((stop - start) * self.row_bytes))

    def release(self) -> None:
        """Let go of the memory in which the file was read."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def remove(self) -> None:
        """Delete the files; what is mapped can be read on."""
        self.path.unlink(missing_ok=True)
        self._sums.unlink(missing_ok=True)

    def _header(self) -> bytes:
        fields = {"block": self.block, "dtype": str(self.dtype), "shape": list(self.shape)}
        return json.dumps(_FORMAT | fields).encode().ljust(_HEADER)

    def _check_size(self) -> None:
        """A map must not be read beyond the end of its file: that would end the process."""
        size = -1
        with suppress(FileNotFoundError):
            size = self.path.stat().st_size
        expected = _HEADER + self._capacity * self.row_bytes
        if size < expected:
            found = "it is gone" if size < 0 else f"it has {size} of {expected} bytes"
            raise self._damaged(found)

    def _damaged(self, what: str) -> DamagedStorageError:
        return DamagedStorageError(
            f"{self.path} is damaged: {what}; start the request again, with TMPDIR on a disk that works "
            "and that nobody cleans up"
        )


def raw_bytes(rows: Tensor) -> memoryview:
    """The memory of a contiguous tensor of any type."""
    return rows.flatten().view(torch.uint8).numpy().data
