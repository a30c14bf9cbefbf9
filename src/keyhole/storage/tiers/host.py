"""Rows in host memory, pinned where they come from a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.storage.tiers.buffer import SPARE, GrowingBuffer
from keyhole.storage.tiers.host_copies import Writes


class HostBuffer(GrowingBuffer):
    """Host memory. Rows from a GPU go to pinned memory, by copies that are waited for when they are read.

    Rows from a CPU are where they should be: ordinary memory. A pinned tensor may take up to twice its bytes,
    as torch asks the system for powers of two.
    """

    tier = "host"

    def __init__(self, spare: int = SPARE) -> None:
        super().__init__(spare)
        self._writes = Writes()

    def view(self, start: int = 0) -> Tensor:
        self._writes.wait()
        return super().view(start)

    @property
    def memory(self) -> Tensor:
        """All there is room for, `[B, H, capacity, W]`, for kernels that read and write it in place.

        They have to come after the copies that were begun: see `precede`.
        """
        assert self._data is not None
        return self._data

    def precede(self, device: torch.device) -> None:
        """Let what a device does next come after the copies that were begun; the host does not wait."""
        self._writes.precede(device)

    def crop(self, length: int) -> None:
        if length == 0:
            self._writes.wait()  # its memory goes back
        super().crop(length)

    def reorder(self, rows: Tensor) -> None:
        if self._data is None:
            return
        held = self._data[:, :, : self.length]
        self._writes.wait()
        self._data = self._allocate((len(rows), *self._data.shape[1:]), held)
        self._data[:, :, : self.length] = held[rows.to(held.device)]

    def _copy(self, rows: Tensor, target: Tensor) -> None:
        self._writes.copy(rows, target)

    def _grow(self, rows: Tensor, needed: int) -> None:
        self._writes.wait()
        super()._grow(rows, needed)

    def _allocate(self, shape: tuple[int, ...], rows: Tensor) -> Tensor:
        if rows.is_cuda or rows.is_pinned():
            return torch.empty(shape, dtype=rows.dtype, pin_memory=True)
        return super()._allocate(shape, rows)
