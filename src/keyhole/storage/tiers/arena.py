"""A nameless file that all rows on disk share.

It has no name in its directory from the beginning: nothing of it is left when the process ends, in whatever
way, it is not replaced, and there is one descriptor for all. Rows are in extents, which are mapped into
memory; space that an extent took goes back when its map does.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock, RLock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keyhole.core.errors import DamagedStorageError, UnsupportedCacheError

_LARGEST = 1 << 40  # bytes of a file, holes included; another one is begun then
_PUNCH_HOLE = 3  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_WAY_OUT = "start the request again, with TMPDIR on a disk that works and has room"


class Arena:
    """A file without a name in `directory`, of one process."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.process = directory, os.getpid()
        try:
            self._file = tempfile.TemporaryFile(prefix="keyhole-", dir=directory, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise _failed(error, directory) from error
        self.foreign = 0  # times that another process was found to have written to it
        self.end = 0
        self._lock = RLock()  # maps may be collected, and their space given back, while it is held
        self._written = self._status().st_mtime_ns

    def extent(self, nbytes: int) -> Extent:
        """Room for so many bytes, which take no space on disk before they are written."""
        size = -(-nbytes // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        with self._writing():
            self._file.truncate(self.end + size)
            start, self.end = self.end, self.end + size
        return Extent(self, start, size)

    def write(self, at: int, data: memoryview) -> None:
        """Write bytes.

        Raises:
            OSError: the disk is full or broken, with the directory.
        """
        with self._writing():
            self._file.seek(at)
            while data:
                data = data[self._file.write(data) :]

    def read(self, at: int, nbytes: int) -> bytes:
        """Bytes as they are on disk; a map would keep in memory what is only passed over."""
        with self._lock:
            self._file.seek(at)
            return self._file.read(nbytes)

    def uncache(self, start: int, size: int) -> None:
        """Take bytes that no map holds out of the system's page cache, so that the disk is read for them."""
        with self._lock:
            os.fdatasync(self._file.fileno())  # what is not written yet would stay
            os.posix_fadvise(self._file.fileno(), start, size, os.POSIX_FADV_DONTNEED)

    def look(self) -> int:
        """`foreign`, brought up to date; in steps of the clock of the file system, a few milliseconds.

        Raises:
            DamagedStorageError: the file was cut short: its maps must not be read.
            UnsupportedCacheError: this process was forked from the one whose file it is.
        """
        if os.getpid() != self.process:
            raise UnsupportedCacheError(
                f"keys and values on disk belong to process {self.process}, from which this one was forked; "
                "save the cache there with `cache.save(path)` and load it here"
            )
        with self._lock:
            status = self._status()
            if status.st_size < self.end:
                raise self.damaged(f"it has {status.st_size} of {self.end} bytes")
            self._note(status.st_mtime_ns)
            return self.foreign

    def damaged(self, what: str) -> DamagedStorageError:
        return DamagedStorageError(
            f"the file of keys and values in {self.directory} is damaged: {what}; {_WAY_OUT}"
        )

    def map(self, start: int, size: int) -> np.ndarray:
        """Bytes of the file in memory, uint8 `[size]`, which may also be written to."""
        libc = _libc()
        if libc is None:
            return np.frombuffer(mmap.mmap(self._file.fileno(), size, offset=start), np.uint8)
        # The module mmap would keep a descriptor for each map.
        access = mmap.PROT_READ | mmap.PROT_WRITE
        address = libc.mmap(None, size, access, mmap.MAP_SHARED, self._file.fileno(), start)
        if address == ctypes.c_void_p(-1).value:
            raise _failed(OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno())), self.directory)
        data = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        weakref.finalize(data, self._unmap, address, start, size).atexit = False
        return data

    def _unmap(self, address: int, start: int, size: int) -> None:
        libc = _libc()
        if os.getpid() == self.process and libc is not None:
            libc.munmap(address, size)
            if hasattr(libc, "fallocate"):
                with self._writing():
                    libc.fallocate(self._file.fileno(), _PUNCH_HOLE, start, size)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A change of our own to the file, so that others are known from it."""
        with self._lock:
            self._note(self._status().st_mtime_ns)
            try:
                yield
            except OSError as error:
                raise _failed(error, self.directory) from error
            finally:
                self._written = self._status().st_mtime_ns

    def _note(self, changed: int) -> None:
        if changed != self._written:
            self.foreign, self._written = self.foreign + 1, changed

    def _status(self) -> os.stat_result:
        return os.fstat(self._file.fileno())


class Extent:
    """A part of an arena: `memory`, uint8, is a map of it."""

    def __init__(self, arena: Arena, start: int, size: int) -> None:
        self.arena, self.start = arena, start
        data = arena.map(start, size)
        self.memory: Tensor = torch.from_numpy(data)

    def write(self, at: int, data: memoryview) -> None:
        """Write bytes; raises as `Arena.write`."""
        self.arena.write(self.start + at, data)

    def read(self, at: int, nbytes: int) -> bytes:
        """Bytes as they are on disk."""
        return self.arena.read(self.start + at, nbytes)

    def release(self) -> None:
        """Let go of the memory in which it was read; what is read later comes from the file again."""
        libc = _libc()
        if libc is not None and hasattr(mmap, "MADV_DONTNEED"):
            libc.madvise(self.memory.data_ptr(), len(self.memory), mmap.MADV_DONTNEED)

    def uncache(self) -> None:
        """As `release`; and what is read later comes from the disk."""
        self.release()
        self.arena.uncache(self.start, len(self.memory))


_open: weakref.WeakValueDictionary[tuple[int, Path], Arena] = weakref.WeakValueDictionary()
_opening = Lock()


def arena() -> Arena:
    """The arena of this process under TMPDIR; it is closed with its last extent.

    Raises:
        OSError: no file can be made there, with the directory.
    """
    with _opening:
        key = os.getpid(), Path(tempfile.gettempdir()).expanduser()
        found = _open.get(key)
        if found is None or found.end > _LARGEST:
            found = _open[key] = Arena(key[1])
        return found


def _failed(error: OSError, directory: Path) -> OSError:
    what = f"cannot keep keys and values on disk: {error.strerror}; {_WAY_OUT}"
    return OSError(error.errno, what, str(directory))


@cache
def _libc() -> Any:
    """The C library; None where there is no POSIX."""
    if os.name != "posix":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if hasattr(libc, "fallocate"):
        libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return libc
