"""Learnt rotations of keys before they are cut into the sub-spaces of a product quantiser (OPQ).

Source: Ge, He, Ke and Sun, "Optimized Product Quantization" (2013): the parametric solution, and the step of
the non-parametric one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.core.axes import LinAlgError, principal_axes

_ROUNDINGS = 16


def balanced_rotation(keys: Tensor, subspaces: int) -> Tensor:
    """The rotation to principal axes, dealt to the sub-spaces so that their variances have equal products.

    Args:
        keys: float32 `[R, T, D]`.

    Returns:
        float32 `[R, D, D]`, orthogonal; `keys @ rotation` is what is to be quantised.
    """
    centred = keys - keys.mean(1, keepdim=True)
    covariance = centred.transpose(1, 2) @ centred / keys.shape[1]
    # Of keys that are all alike, only rounding is left, and an eigensolver may fail on that.
    noise = (_ROUNDINGS * torch.finfo(keys.dtype).eps * keys.abs().amax((1, 2))).square()
    alike = covariance.diagonal(dim1=1, dim2=2).amax(-1) <= noise
    variances, axes = principal_axes(covariance.masked_fill(alike[:, None, None], 0.0))
    order = torch.stack([_deal(row, subspaces) for row in variances.cpu()]).to(keys.device)
    return axes.gather(2, order.unsqueeze(1).expand_as(axes))


def aligning_rotation(keys: Tensor, decoded: Tensor) -> Tensor:
    """The rotation `[R, D, D]` that brings `keys [R, T, D]` closest to what codes stand for (Procrustes)."""
    product = keys.transpose(1, 2) @ decoded
    try:
        left, _, right = torch.linalg.svd(product)
    except LinAlgError:
        left, _, right = torch.linalg.svd(product.double())
    return (left @ right).to(keys.dtype)


def _deal(variances: Tensor, subspaces: int) -> Tensor:
    """Eigenvalue allocation: largest axis first, each to the sub-space of least product that has room."""
    size = variances.numel() // subspaces
    logs = variances.clamp(min=1e-12).log().tolist()
    buckets: list[list[int]] = [[] for _ in range(subspaces)]
    products = [0.0] * subspaces
    offset = min(logs)
    for axis in sorted(range(len(logs)), key=lambda i: -logs[i]):
        bucket = min((b for b in range(subspaces) if len(buckets[b]) < size), key=lambda b: products[b])
        buckets[bucket].append(axis)
        products[bucket] += logs[axis] - offset
    return torch.tensor([axis for bucket in buckets for axis in bucket])
