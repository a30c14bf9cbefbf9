"""How magnitudes are distributed, counted over any amount of data."""

from __future__ import annotations

import torch
from torch import Tensor

_SHIFT = 15  # bits of a float32 that a bin leaves out: 256 bins for each power of two
_BINS = 1 << (31 - _SHIFT)


class Histogram:
    """Counts of non-negative float32 numbers in bins of equal relative width, 1/256.

    All numbers weigh the same, in whatever portions they come.
    """

    def __init__(self) -> None:
        self._counts = torch.zeros(_BINS, dtype=torch.long)

    def add(self, values: Tensor) -> None:
        """Count numbers of any shape; none is negative or NaN."""
        bins = values.detach().float().contiguous().view(torch.int32).flatten() >> _SHIFT
        self._counts += torch.bincount(bins, minlength=_BINS).cpu()

    def quantiles(self, shares: Tensor) -> Tensor:
        """Float32 numbers below which so large `shares` of the counted ones lie, to a part in 256.

        Raises:
            ValueError: nothing was counted.
        """
        upto = self._counts.cumsum(0).double()
        if not upto[-1]:
            raise ValueError("nothing was counted, so there are no quantiles; give more data")
        wanted = shares.double() * upto[-1]
        bins = torch.searchsorted(upto, wanted).clamp(max=_BINS - 1)
        within = (upto[bins] - wanted) / self._counts[bins].clamp(min=1)
        edges = (torch.stack([bins, bins + 1]) << _SHIFT).int().view(torch.float32).double()
        low, high = edges
        return torch.where(shares <= 0, 0.0, high - within * (high - low)).float()
