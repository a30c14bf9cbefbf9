"""What logits estimated from quantised keys leave uncertain.

A centroid is the mean of the keys it stands for, so an estimated logit is the mean of the true ones, and they
scatter around it with a variance s2 that follows from the residuals of the keys and the query: the true
weight exp(a) of a token is on average exp(s2 / 2) times the estimated one,
while that of always-read tokens is exact.
"""

from __future__ import annotations

from torch import Tensor

_MOST = 64.0


def residual_moment(residuals: Tensor) -> Tensor:
    """Second moment `[..., D, D]` of residuals `[..., T, D]`."""
    return residuals.transpose(-1, -2) @ residuals / residuals.shape[-2]


def logit_variance(query: Tensor, moment: Tensor, scale: float) -> Tensor:
    """Variance `[..., G]` of the logits of `query [..., G, D]`, from the residuals' `moment [..., D, D]`.

    It is bounded: what scatters more is no estimate of anything.
    """
    return ((query @ moment * query).sum(-1) * scale**2).clamp(max=_MOST)
