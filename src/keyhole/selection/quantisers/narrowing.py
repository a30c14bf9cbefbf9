"""Projections of keys to few numbers, by which they rank: principal axes, or the heaviest channels.

Sources: "Loki: Low-rank Keys for Efficient Sparse Attention", arXiv 2406.02542; "Post-Training Sparse
Attention with Double Sparsity", arXiv 2408.07092.

Legend: Hkv KV heads, G query heads of each, T tokens, Q queries, D head size, W numbers of a narrow key.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from keyhole.core.axes import principal_axes

# Of keys `[Hkv, T, D]` and queries `[Hkv, G * Q, D]`, float32, and W: the projection `[Hkv, D, W]`.
Narrowing = Callable[[Tensor, Tensor, int], Tensor]


def principal(keys: Tensor, queries: Tensor, width: int) -> Tensor:  # noqa: ARG001
    """The axes along which keys vary most, the greatest last."""
    centred = keys - keys.mean(1, keepdim=True)
    _, axes = principal_axes(centred.transpose(1, 2) @ centred / keys.shape[1])
    return axes[..., -width:]


def heaviest(keys: Tensor, queries: Tensor, width: int) -> Tensor:
    """The channels of the largest mean |q_j k_j|, over all pairs; of keys alone where no query was shown."""
    weights = keys.abs().mean(1)
    if queries.shape[1]:
        weights = weights * queries.abs().mean(1)
    channels = weights.argsort(dim=-1, descending=True, stable=True)[:, :width]
    return F.one_hot(channels.sort(-1).values, keys.shape[-1]).transpose(1, 2).to(keys.dtype)
