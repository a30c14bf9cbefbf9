"""From the spread of a sample to a bound of the error of the sum that it estimates.

The error is about normal, with some covariance. Its squared length is then about that covariance's trace
times a chi-square over its degrees of freedom, as many as the covariance has directions (Satterthwaite 1946).
Few terms that hold most of the spread do not show it well: Student's quantile is wider for that.

Legend: S terms, D their size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import vector_norm

_ONE_SIDED, _TWO_SIDED = 1.645, 1.96  # quantiles of the normal distribution, at 95%


def bound(terms: Tensor, least: Tensor | None = None) -> Tensor:
    """The length, at 95% confidence, of an error of which `terms [..., S, D]` show the covariance.

    That is the sum of their squares, whose trace is taken to be at least `least [...]`.
    NaN or infinity where terms are so large that their squares are.
    """
    covariance = terms.transpose(-1, -2) @ terms
    squares = vector_norm(terms, dim=-1).square()
    trace = squares.sum(-1)
    directions = _ratio(trace, covariance.square().sum((-1, -2)))
    effective = _ratio(trace, squares.square().sum(-1))
    trace = trace if least is None else torch.maximum(trace, least)
    return trace.sqrt() * _normal(directions) * _student(effective)


def _ratio(sums: Tensor, squared: Tensor) -> Tensor:
    """How many equal terms would have such a sum and such a sum of squares; at least 1."""
    return torch.where(sums > 0, sums.square() / squared, 1.0).clamp(min=1)


def _normal(directions: Tensor) -> Tensor:
    """Of the length over its root mean square, the quantile (Wilson and Hilferty 1931, of chi-square)."""
    part = 2 / (9 * directions)
    return (1 - part + _ONE_SIDED * part.sqrt()) ** 1.5


def _student(terms: Tensor) -> Tensor:
    """Student's quantile over the normal one (Cornish and Fisher's expansion, to the second order)."""
    z = _TWO_SIDED
    first, second = (z**2 + 1) / 4, (5 * z**4 + 16 * z**2 + 3) / 96
    return 1 + first / terms + second / terms.square()
