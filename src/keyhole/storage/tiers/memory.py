"""Memory for caches that are read at random places."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

_STATUS = Path("/proc/self/statm")
_HUGE = 2 << 20  # bytes of a huge page; smaller tensors gain nothing from one
_COLLAPSE = 25  # MADV_COLLAPSE of Linux 6.1, which Python's mmap does not name


def empty(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor; a large one on the CPU is put in huge pages, where the system offers them.

    Reading scattered rows of a long cache misses the translation buffer at almost every row with small pages.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or nbytes < _HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    # Private: Linux gives shared anonymous memory no huge pages, unless it is set up to.
    memory = mmap.mmap(-1, -(-nbytes // _HUGE) * _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages: ordinary ones serve
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype, count=math.prod(shape)).view(shape)


def into_huge_pages(held: Tensor) -> None:
    """Put a CPU tensor's memory, which someone else allocated, in huge pages where the system does that.

    Numbers and addresses stay what they are; the first call copies the memory once.
    """
    if held.device.type != "cpu" or os.name != "posix" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    memory = held.untyped_storage()
    start = -(-memory.data_ptr() // _HUGE) * _HUGE
    nbytes = (memory.data_ptr() + memory.nbytes() - start) // _HUGE * _HUGE
    if nbytes <= 0:
        return
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    # Where the kernel lacks one of the two, or memory in one piece, it returns an error and changes nothing.
    for advice in (mmap.MADV_HUGEPAGE, _COLLAPSE):
        libc.madvise(start, nbytes, advice)


def mapped_bytes() -> int:
    """Bytes of mapped files that this process has in memory; 0 where the system does not tell."""
    if not _STATUS.exists():
        return 0
    return int(_STATUS.read_text().split()[2]) * mmap.PAGESIZE
