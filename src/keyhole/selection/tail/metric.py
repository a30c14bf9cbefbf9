"""How far tokens are apart: by what they add to attention.

Two tokens can stand for each other if queries give them the same logit, and if their values are near. So
keys are taken along the factor of the queries' second moment, where squared distances are the mean squares of
differences of logits, and beside them the values. Both are scaled to have the same variance.

Legend: B batch, Hkv KV heads, T tokens, D and E size of keys and of values.
"""

from __future__ import annotations

import torch
from torch import Tensor

_EVENED = 0.1  # of the mean variance, added along each axis: queries to come are not quite those shown


def factors(moments: Tensor) -> Tensor:
    """Lower triangular factors `[B, Hkv, D, D]` of `moments`, those of no use replaced by the identity."""
    identity = torch.eye(moments.shape[-1], device=moments.device)
    level = moments.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    usable = level.isfinite() & (level > 0)
    evened = torch.where(usable, moments / level.where(usable, 1.0) + _EVENED * identity, identity)
    found, failed = torch.linalg.cholesky_ex(evened)
    return found.where((failed == 0)[..., None, None], identity)


def joined(keys: Tensor, values: Tensor, along: Tensor | None) -> Tensor:
    """Points, float32 `[B, Hkv, T, D + E]`, whose distances say how unlike tokens are.

    Args:
        along: float32 `[B, Hkv, D, D]`, factors of the second moment of queries; None takes all axes alike.
    """
    keys = _centred(keys)
    return torch.cat([_even(keys if along is None else keys @ along), _even(_centred(values))], -1)


def _centred(rows: Tensor) -> Tensor:
    rows = rows.float()
    return rows - rows.mean(2, keepdim=True)


def _even(rows: Tensor) -> Tensor:
    """`rows [B, Hkv, T, W]` divided by the root of their variance, where they have one."""
    spread = rows.square().sum(-1).mean(2).sqrt()[..., None, None]
    return rows / spread.where(spread > 0, 1.0)
