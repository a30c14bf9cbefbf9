"""Values by ridge regression.

Legend: B batch, Hkv KV heads, R queries, S slots, E size of a value.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST = 1e-12  # keeps a system that asks for nothing solvable


def ridge_change(shares: Tensor, missing: Tensor, ridge: float, counts: Tensor) -> Tensor:
    """The change of values `[B, Hkv, S, E]` by which `shares [B, Hkv, R, S]` of it are mostly `missing`.

    The smaller of the two systems that give it is solved, of queries or of tokens. `counts [B, Hkv]` tokens
    are free.
    """
    shares, missing = shares.double(), missing.double()
    queries, tokens = shares.shape[-2:]
    squares = shares.square().sum((-2, -1)) / counts.clamp(min=1)
    weight = (ridge * squares).clamp(min=_LEAST)[..., None, None]
    if tokens <= queries:
        change = _solved(shares.mT @ shares, weight, shares.mT @ missing)
    else:
        change = shares.mT @ _solved(shares @ shares.mT, weight, missing)
    return change.float()


def _solved(products: Tensor, weight: Tensor, right: Tensor) -> Tensor:
    """The solution of a system of `products` with `weight` added to their diagonal."""
    system = products + weight * torch.eye(products.shape[-1], device=products.device)
    return torch.cholesky_solve(right, torch.linalg.cholesky(system))
