"""Slower places: host memory behind a link of a given bandwidth, and a disk of which nothing is in memory.

The link stands for PCIe where there is no GPU. The disk is real; how fast it is depends on what else uses it.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from keyhole.storage.tiers.buffer import Buffer
from keyhole.storage.tiers.disk import DiskBuffer
from keyhole.storage.tiers.host import HostBuffer

_SPUN = 0.0005  # seconds before the end from which on the clock is watched
_PIECE = 1 << 16  # bytes


class Tier(Protocol):
    """A place that steps fetch from.

    Attributes:
        moved: bytes that steps have fetched.
        waited: CPU seconds of watching the clock for it.
    """

    moved: int
    waited: float

    @property
    def seconds(self) -> float:
        """What fetching has taken."""
        ...

    def begin(self) -> None:
        """A step begins: bytes count, until it has ended."""
        ...

    def end(self, wall: float, busy: float) -> None:
        """It took so many seconds by the clock, and of the CPU."""
        ...

    def buffer(self, block: int) -> Buffer:
        """Rows at this place, of which `block` are one piece."""
        ...


@dataclass
class Link:
    """Counts the time that bytes take to cross it.

    Attributes:
        bandwidth: bytes per second.
        waits: whether steps wait that long, rather than have it added to their time.
        open: whether bytes count; while prompts are filled in they do not.
        moved: bytes that have crossed.
        waited: CPU seconds of watching the clock.
    """

    bandwidth: float
    waits: bool = False
    open: bool = False
    moved: int = 0
    waited: float = 0.0

    @property
    def seconds(self) -> float:
        """What the bytes that have crossed take."""
        return self.moved / self.bandwidth

    def begin(self) -> None:
        self.open = True

    def end(self, wall: float, busy: float) -> None:  # noqa: ARG002
        self.open = False

    def buffer(self, block: int) -> Buffer:  # noqa: ARG002
        return LinkedBuffer(self)

    def cross(self, nbytes: int) -> None:
        """So many bytes cross; where it waits, return when they are over."""
        if not self.open or nbytes <= 0:
            return
        self.moved += nbytes
        if self.waits:
            begin, busy = time.perf_counter(), time.process_time()
            end = begin + nbytes / self.bandwidth
            if end - begin > 2 * _SPUN:
                time.sleep(end - begin - _SPUN)
            while time.perf_counter() < end:
                pass
            self.waited += time.process_time() - busy


def copying(nbytes: int = 256 << 20) -> float:
    """Bytes per second at which this machine copies memory, in pieces of a megabyte."""
    here = torch.ones(nbytes, dtype=torch.uint8)
    there = torch.empty(1 << 20, dtype=torch.uint8)
    begin = time.perf_counter()
    for piece in here.split(1 << 20):
        there.copy_(piece)
    return nbytes / (time.perf_counter() - begin)


class LinkedBuffer(HostBuffer):
    """Rows that cross a link when they are read."""

    def __init__(self, link: Link) -> None:
        super().__init__(1)
        self._link = link

    def view(self, start: int = 0) -> Tensor:
        rows = super().view(start)
        self._link.cross(rows.numel() * rows.itemsize)
        return rows

    def reading(self, rows: Tensor) -> Tensor:
        held = super().view()
        self._link.cross(rows.numel() * held.shape[3] * held.itemsize)
        return held


@dataclass
class ColdDisk:
    """A file under TMPDIR, taken out of the system's page cache before every step.

    A step waits as long as its time by the clock is more than that of the CPU, so that other processes count.

    Attributes:
        moved: bytes of rows that steps asked for; the system reads whole pages, and some ahead.
        seconds: that steps have waited.
    """

    open: bool = False
    moved: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    _buffers: list[ColdBuffer] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not hasattr(os, "posix_fadvise"):
            raise ValueError("no posix_fadvise here, by which a page cache is made cold; give --tier link")

    def begin(self) -> None:
        for buffer in self._buffers:
            buffer.uncache()
        self.open = True

    def end(self, wall: float, busy: float) -> None:
        self.seconds, self.open = self.seconds + max(wall - busy, 0.0), False

    def buffer(self, block: int) -> Buffer:
        self._buffers.append(ColdBuffer(self, block))
        return self._buffers[-1]


class ColdBuffer(DiskBuffer):
    """Rows on a disk whose bytes are counted when they are asked for."""

    def __init__(self, disk: ColdDisk, block: int) -> None:
        super().__init__(block)
        self._disk = disk

    def view(self, start: int = 0) -> Tensor:
        return self._counted(super().view(start), None)

    def reading(self, rows: Tensor) -> Tensor:
        return self._counted(super().reading(rows), rows.numel())

    def _counted(self, held: Tensor, rows: int | None) -> Tensor:
        """Of `held [B, H, n, W]` so many rows of a head are read; None for all."""
        if self._disk.open:
            self._disk.moved += (held.numel() if rows is None else rows * held.shape[3]) * held.itemsize
        return held


def reading_cold(nbytes: int = 64 << 20) -> float:
    """Bytes per second at which a file under TMPDIR is read that is not in memory, in pieces of 64 KiB."""
    with tempfile.TemporaryFile() as file:
        file.write(os.urandom(nbytes))
        file.flush()
        os.fdatasync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, nbytes, os.POSIX_FADV_DONTNEED)
        begin = time.perf_counter()
        for at in range(0, nbytes, _PIECE):
            os.pread(file.fileno(), _PIECE, at)
        return nbytes / (time.perf_counter() - begin)
