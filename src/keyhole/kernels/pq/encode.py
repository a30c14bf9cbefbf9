"""Nearest-centroid assignment: k-means labels and product-quantiser codes.

Shapes: R rows (batch x KV heads), T tokens, D size of a point, C centroids, M sub-spaces.
"""

import torch
from torch import Tensor

from keyhole.kernels.backend.dispatch import use_native, use_triton
from keyhole.kernels.backend.native import FLOATS, TYPES, call

_CHUNK = 1 << 22


def kmeans_assign(points: Tensor, centroids: Tensor, *, impl: str = "auto") -> Tensor:
    """Labels [R, T] (int32) of the centroids [R, C, D] nearest to points [R, T, D]; ties: the lower label."""
    if points.dim() != 3 or centroids.dim() != 3:
        raise ValueError(
            f"points and centroids have {points.dim()} and {centroids.dim()} dimensions, expected 3"
        )
    fits = points.shape[0] == centroids.shape[0] and points.shape[2] == centroids.shape[2]
    if not fits or centroids.shape[1] == 0:
        raise ValueError(f"points {list(points.shape)} do not fit centroids {list(centroids.shape)}")
    if use_native(impl, points, centroids, supported=points.dtype in FLOATS):
        return _native(points, centroids[:, None], torch.int32)[..., 0]
    if use_triton(impl, points, centroids, supported=points.dtype in FLOATS):
        from keyhole.kernels.pq.triton.assign import assign

        return assign(points, centroids[:, None], torch.int32)[..., 0]
    return _assign(points[:, :, None], centroids[:, None])[..., 0].int()


def pq_encode(keys: Tensor, codebooks: Tensor, *, impl: str = "auto") -> Tensor:
    """Codes [R, T, M] (uint8) of keys [R, T, D] for codebooks [R, M, C, D / M]."""
    if keys.dim() != 3 or codebooks.dim() != 4:
        raise ValueError(
            f"keys and codebooks have {keys.dim()} and {codebooks.dim()} dimensions, expected 3 and 4"
        )
    rows, subspaces, centroids, width = codebooks.shape
    fits = keys.shape[0] == rows and keys.shape[2] == subspaces * width
    if not fits or not 1 <= centroids <= 256:
        raise ValueError(f"keys {list(keys.shape)} do not fit codebooks {list(codebooks.shape)}")
    if use_native(impl, keys, codebooks, supported=keys.dtype in FLOATS):
        return _native(keys, codebooks, torch.uint8)
    if use_triton(impl, keys, codebooks, supported=keys.dtype in FLOATS):
        from keyhole.kernels.pq.triton.assign import assign

        return assign(keys, codebooks, torch.uint8)
    return _assign(keys.unflatten(2, (subspaces, width)), codebooks).to(torch.uint8)


def _assign(points: Tensor, centroids: Tensor) -> Tensor:
    """Labels [R, T, M] of points [R, T, M, W] among centroids [R, M, C, W], by half the squared distance."""
    half_norms = centroids.float().square().sum(-1)[:, None] / 2
    rows, _, subspaces, _ = points.shape
    step = max(1, _CHUNK // (rows * subspaces * centroids.shape[2]))
    labels = [
        (half_norms - torch.einsum("rtmw,rmcw->rtmc", part.float(), centroids.float())).argmin(-1)
        for part in points.split(step, dim=1)
    ]
    return torch.cat(labels, 1) if labels else points.new_zeros(rows, 0, subspaces, dtype=torch.int64)


def _native(points: Tensor, centroids: Tensor, dtype: torch.dtype) -> Tensor:
    rows, tokens, _ = points.shape
    points = points if points.stride(2) == 1 else points.contiguous()
    centroids = centroids.float().contiguous()
    labels = torch.empty(rows, tokens, centroids.shape[1], dtype=dtype)
    call(
        "kh_assign", points.data_ptr(), TYPES[points.dtype], points.stride(0), points.stride(1),
        centroids.data_ptr(), rows, tokens, *centroids.shape[1:], labels.data_ptr(), labels.element_size(),
    )  # fmt: skip
    return labels
