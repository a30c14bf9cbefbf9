"""Rows of sums, in the precision that is asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.storage import GrowingBuffer

_MOST = 127


class SummedRows:
    """Sums `[B, H, C, W]`, one row for each cluster: float32, bfloat16, or int8 with a scale for each row.

    The error of 8 bits, at most 1/254 of a row's largest number, is far below the spread within a cluster.
    """

    def __init__(self, dtype: torch.dtype | None) -> None:
        self.dtype = dtype  # None is float32 for sums of float32, bfloat16 for others
        self._rows = GrowingBuffer()
        self._scales = GrowingBuffer()  # float32 `[B, H, C, 1]`; of int8 only

    @property
    def length(self) -> int:
        """Clusters."""
        return self._rows.length

    @property
    def buffers(self) -> tuple[GrowingBuffer, ...]:
        """All that is held, one row for each cluster."""
        return (self._rows, self._scales) if self.dtype == torch.int8 else (self._rows,)

    def append(self, sums: Tensor, of: torch.dtype) -> None:
        """Append float32 `sums [B, H, T, W]` of numbers of type `of`."""
        if self.dtype != torch.int8:
            whole = torch.float32 if of == torch.float32 else torch.bfloat16
            self._rows.append(sums.to(self.dtype or whole))
            return
        scales = sums.abs().amax(-1, keepdim=True) / _MOST
        # What is no number makes its scale none, so that it is seen in the sums.
        self._rows.append((sums / scales.where(scales > 0, 1.0)).nan_to_num(0, 0, 0).round().to(torch.int8))
        self._scales.append(scales)

    def view(self) -> Tensor:
        """The sums, bfloat16 where they are held so, else float32."""
        held = self._rows.view()
        return held.float() * self._scales.view() if self.dtype == torch.int8 else held

    def state(self, name: str) -> dict[str, Tensor]:
        """What is held, as named tensors."""
        return {
            name + kind: buffer.view() for kind, buffer in zip(("", "_scales"), self.buffers, strict=False)
        }

    def restore(self, name: str, state: dict[str, Tensor]) -> None:
        """Take over a `state` into what is empty."""
        for kind, buffer in zip(("", "_scales"), self.buffers, strict=False):
            buffer.append(state[name + kind])
