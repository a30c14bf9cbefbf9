"""Host memory behind a link of a given bandwidth, which stands for PCIe where there is no GPU."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from keyhole.storage.tiers.host import HostBuffer

_SPUN = 0.0005  # seconds before the end from which on the clock is watched


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
