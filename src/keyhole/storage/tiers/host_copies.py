"""Writes of a GPU to pinned host memory, which go on while it computes."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


class Writes:
    """Copies to host memory, and who has to wait for them; of rows of a CPU plain copies."""

    def __init__(self) -> None:
        self._from: torch.device | None = None  # a GPU that may still be writing
        self._stream: torch.cuda.Stream | None = None  # its other work does not wait for these copies

    def copy(self, rows: Tensor, target: Tensor) -> None:
        """Copy `rows [B, H, T, W]` of any device; those of a GPU by a stream of its own, in large pieces.

        The rows must not be written to afterwards.
        """
        if not rows.is_cuda:
            target.copy_(rows)
            return
        rows, stream = rows.contiguous(), _stream(rows.device)
        stream.wait_stream(torch.cuda.current_stream(rows.device))
        with torch.cuda.stream(stream):
            # A copy for each head: only what is dense on both sides is copied without a stop in between.
            for here, there in zip(rows.flatten(0, 1), target.flatten(0, 1), strict=True):
                there.copy_(here, non_blocking=True)
        rows.record_stream(stream)
        self._from, self._stream = rows.device, stream

    def precede(self, device: torch.device) -> None:
        """Let what a GPU does next come after the copies, and expect it to write."""
        if device.type != "cuda":
            return
        self._from = device
        if self._stream is not None:
            torch.cuda.current_stream(device).wait_stream(self._stream)
            self._stream = None

    def wait(self) -> None:
        """Wait until everything is written."""
        if self._from is not None:
            torch.cuda.synchronize(self._from)
        self._from = self._stream = None


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
