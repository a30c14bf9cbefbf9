"""Files of entries in memory, shared by all who read them in this process."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import weakref
import zlib
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keyhole.core.errors import DamagedStoreError
from keyhole.core.tensorfile import DTYPES
from keyhole.documents.store.entry_file import PAD, SUMS, digest
from keyhole.documents.store.pages import PAGE

_AGAIN = "`keyhole documents verify --repair` removes what is damaged, then add the document again"


class MappedFile:
    """The file of an entry: read when first asked, verified page by page."""

    def __init__(self, path: Path, nbytes: int, head: int, expected: bytes) -> None:
        self.path, self.nbytes, self.head, self.expected = path, nbytes, head, expected
        self._known: dict[str, tuple[int, int, int, int, int]] = {}
        self._whole: set[str] = set()  # names of tensors all of whose pages are verified

    @cached_property
    def header(self) -> dict[str, Any]:
        """Facts (`facts`) and tensors (`tensors`: dtype, shape and place in the file)."""
        data = self._head
        size = int.from_bytes(data[:8], "little") + 8
        held = json.loads(data[8:size])
        facts = json.loads(held.pop("__metadata__")["keyhole"])
        tensors = {name: entry for name, entry in held.items() if not name.startswith((SUMS, PAD))}
        for entry in held.values():
            entry["data_offsets"] = [size + at for at in entry["data_offsets"]]
        return {"facts": facts, "tensors": tensors, "sums": held[SUMS]["data_offsets"]}

    @cached_property
    def _head(self) -> bytes:
        try:
            with self.path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                data = file.read(self.head)
        except FileNotFoundError as error:
            raise self.damaged("it is gone") from error
        if size != self.nbytes:
            raise self.damaged(f"it has {size} bytes, not {self.nbytes}")
        if digest(data) != self.expected:
            raise self.damaged("its header does not match its digest")
        return data

    @cached_property
    def memory(self) -> Tensor:
        """The mapped bytes, uint8; private, so nobody writes to the file."""
        self.header  # noqa: B018 - of a shorter file the end cannot be read
        memory = torch.from_file(str(self.path), shared=False, size=self.nbytes, dtype=torch.uint8)
        _advise_random(memory)
        return memory

    @cached_property
    def _view(self) -> Any:
        return memoryview(self.memory.numpy())  # type: ignore[arg-type]

    @cached_property
    def sums(self) -> np.ndarray:
        """The checksum of each page after the head."""
        start, stop = self.header["sums"]
        return np.frombuffer(self._head[start:stop], "<u4")

    @cached_property
    def verified(self) -> np.ndarray:
        """Which pages after the head were verified."""
        return np.zeros(len(self.sums), bool)

    def locate(self, name: str) -> tuple[int, int, tuple[int, ...], torch.dtype]:
        """Beginning and end in the file, shape and dtype of a tensor."""
        entry = self.header["tensors"][name]
        start, stop = entry["data_offsets"]
        return start, stop, tuple(entry["shape"]), DTYPES[entry["dtype"]]

    def tensor(self, name: str) -> Tensor:
        start, stop, shape, dtype = self.locate(name)
        return self.memory[start:stop].view(dtype).view(shape)

    def check(self, name: str, rows: np.ndarray | None) -> None:
        """Verify the pages that rows lie on, or all of a tensor's."""
        first, last, start, size, count = self._pages_of(name)
        if rows is not None:
            _check_within(rows, count)
        if name in self._whole:
            return
        wanted = np.full(last - first, rows is None)
        if rows is not None:
            wanted[_pages(start, size, rows) - first] = True
        wanted &= ~self.verified[first:last]
        pages = first + np.flatnonzero(wanted)
        if pages.size:
            self._verify(name, pages)
        if rows is None or (pages.size and self.verified[first:last].all()):
            self._whole.add(name)

    def _pages_of(self, name: str) -> tuple[int, int, int, int, int]:
        """First and last (exclusive) page, place of the first byte, bytes of a row, rows."""
        found = self._known.get(name)
        if found is None:
            start, stop, shape, _ = self.locate(name)
            start, stop, count = start - self.head, stop - self.head, int(np.prod(shape[:-1]))
            found = start // PAGE, -(-stop // PAGE), start, (stop - start) // max(count, 1), count
            self._known[name] = found
        return found

    def _verify(self, name: str, pages: np.ndarray) -> None:
        view, crc32, places = self._view, zlib.crc32, (self.head + pages * PAGE).tolist()
        found = np.array([crc32(view[at : at + PAGE]) for at in places], self.sums.dtype)
        wrong = np.flatnonzero(found != self.sums[pages])
        if wrong.size:
            at = places[wrong[0]]
            raise self.damaged(f"bytes {at} to {at + PAGE}, of {name}, do not match their checksum")
        self.verified[pages] = True

    def check_all(self) -> dict[str, Any]:
        """Verify every byte as it is on the disk now, also those read before; returns the file's facts."""
        fresh = MappedFile(self.path, self.nbytes, self.head, self.expected)
        with self.path.open("rb") as file:
            file.seek(len(fresh._head))
            for page, expected in enumerate(fresh.sums.tolist()):
                if zlib.crc32(file.read(PAGE)) != expected:
                    raise self.damaged(f"bytes from {self.head + page * PAGE} do not match their checksum")
        return fresh.header["facts"]

    def damaged(self, what: str) -> DamagedStoreError:
        return DamagedStoreError(f"{self.path} is damaged: {what}; {_AGAIN}")


_files: weakref.WeakValueDictionary[tuple[Path, bytes], MappedFile] = weakref.WeakValueDictionary()


def mapped_file(path: Path, nbytes: int, head: int, expected: bytes) -> MappedFile:
    """The one of this process."""
    key = path, expected
    return _files.get(key) or _files.setdefault(key, MappedFile(path, nbytes, head, expected))


def _check_within(rows: np.ndarray, count: int) -> None:
    if rows.size and (rows.min() < 0 or rows.max() >= count):
        raise IndexError(f"rows {rows.min()} to {rows.max()} of {count}")


def _pages(start: int, size: int, rows: np.ndarray) -> np.ndarray:
    """The pages of rows of `size` bytes in a tensor that begins at `start`; some of them several times."""
    if not rows.size or not size:
        return np.zeros(0, np.int64)
    at = start + rows * size
    first, last = at // PAGE, (at + size - 1) // PAGE
    if size <= PAGE:
        return np.concatenate([first, last])
    between = [first + step for step in range(size // PAGE + 2)]
    return np.minimum(np.concatenate(between), np.tile(last, len(between)))


def _advise_random(memory: Tensor) -> None:
    """Read no further than asked: the rows of a step are scattered."""
    libc = _libc()
    if libc is not None:
        libc.madvise(memory.data_ptr(), len(memory), mmap.MADV_RANDOM)


@cache
def _libc() -> Any:
    if os.name != "posix" or not hasattr(mmap, "MADV_RANDOM"):
        return None
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc
