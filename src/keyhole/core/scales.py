"""Powers of two that bring keys into the range where their squares are numbers.

Dividing by one loses nothing, so what is fitted is what it would be in a wider type.
"""

from __future__ import annotations

from math import isfinite

import torch
from torch import Tensor

_RANGE = 30  # keys from 2 ** -30 to 2 ** 30 stay as they are
_MOST = 120  # of an exponent, so that factors and their inverses are normal float32


def scales_of(points: Tensor) -> Tensor:
    """A factor for each set of `points [..., T, D]`, float32 `[...]`: 1 unless they are out of range."""
    if points.shape[-2] == 0:
        return points.new_ones(points.shape[:-2])
    largest = points.abs().amax((-2, -1))
    exponents = torch.frexp(largest).exponent.clamp(-_MOST, _MOST)
    within = (exponents.abs() <= _RANGE) | (largest == 0)
    return torch.ldexp(torch.ones_like(largest), exponents.masked_fill(within, 0))


def all_finite(numbers: Tensor) -> bool:
    """Whether none is NaN or infinite: the least and the greatest say so, in one pass without a copy."""
    return numbers.numel() == 0 or all(isfinite(end.item()) for end in numbers.aminmax())
