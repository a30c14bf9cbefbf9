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
    return _variance(query, moment, scale).clamp(max=_MOST)


def logit_variances(query: Tensor, moment: Tensor, errors: Tensor, scale: float) -> Tensor:
    """As `logit_variance`, of each of T keys and without a bound: `[..., G, T]`.

    What a key's codes miss is taken to have the shape of the moment, and the size of the key's own squared
    `errors [..., T]`.
    """
    sizes = errors / moment.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True).clamp(min=1e-30)
    return _variance(query, moment, scale).unsqueeze(-1) * sizes.unsqueeze(-2)


def _variance(query: Tensor, moment: Tensor, scale: float) -> Tensor:
    return (query @ moment * query).sum(-1) * scale**2
