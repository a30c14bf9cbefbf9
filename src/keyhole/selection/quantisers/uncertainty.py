"""What logits estimated from quantised keys leave uncertain, and how a target share of mass allows for it.

A centroid is the mean of the keys it stands for, so an estimated logit is the mean of the true ones, and they
scatter around it with a variance s2 that follows from the residuals of the keys and the query. Two things
result. The true weight exp(a) of a token is on average exp(s2 / 2) times the estimated one, while the weight
of always-read tokens is exact; and a share that just reaches its target by estimate misses it half the time.
"""

from __future__ import annotations

import math

from torch import Tensor


def residual_moment(residuals: Tensor) -> Tensor:
    """Second moment `[..., D, D]` of residuals `[..., T, D]`."""
    return residuals.transpose(-1, -2) @ residuals / residuals.shape[-2]


def logit_variance(query: Tensor, moment: Tensor, scale: float) -> Tensor:
    """Variance `[..., G]` of the logits of `query [..., G, D]`, from the residuals' `moment [..., D, D]`."""
    return (query @ moment * query).sum(-1) * scale**2


def cautious(target: float, variance: Tensor) -> float:
    """The share to reach by estimate, so that the true one reaches `target` in most cases.

    The tokens left unread are taken to weigh one standard deviation of their logits more than estimated.
    """
    return 1.0 - (1.0 - target) * math.exp(-math.sqrt(float(variance.mean())))
