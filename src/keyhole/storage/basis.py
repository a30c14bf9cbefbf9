"""Low-rank keys (ShadowKV): what keys of all heads have in common, before their rotation.

Source: "ShadowKV: KV Cache in Shadows for High-Throughput Long-Context LLM Inference", arXiv 2410.21465.
There by a singular value decomposition of the whole prompt; here by the eigenvectors of the Gram matrix of
centred keys, which is summed piece by piece.

Legend: B batch, Hkv KV heads, T tokens, S slots, D head size, M = Hkv * D, R rank.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Basis(NamedTuple):
    """The axes along which keys of a batch row are kept.

    Attributes:
        mean: float32 `[B, Hkv, D]`.
        axes: float32 `[B, Hkv, D, R]`, orthonormal over all heads together.
    """

    mean: Tensor
    axes: Tensor

    def project(self, keys: Tensor) -> Tensor:
        """Coefficients float32 `[B, 1, T, R]` of `keys [B, Hkv, T, D]` before rotation, for all heads."""
        return ((keys - self.mean.unsqueeze(2)) @ self.axes).sum(1, keepdim=True)

    def rebuild(self, coefficients: Tensor) -> Tensor:
        """Keys before rotation `[B, Hkv, S, D]`, of `coefficients [B, 1 or Hkv, S, R]`."""
        return coefficients.float() @ self.axes.transpose(-1, -2) + self.mean.unsqueeze(2)

    def reorder(self, rows: Tensor) -> Basis:
        """Of the batch rows `rows`, in that order."""
        return Basis(*(tensor.index_select(0, rows) for tensor in self))


def fit_basis(pieces: Iterable[tuple[Tensor, Tensor]], rank: int) -> Basis:
    """The basis of least squared error.

    Args:
        pieces: keys `[B, Hkv, T, D]` before rotation, float32, and bool `[B, T]`, which of them count.
        rank: R, at most Hkv * D; with that every key is met exactly.
    """
    centre = sums = gram = count = torch.empty(0)
    heads = 1
    for keys, counted in pieces:
        heads = keys.shape[1]
        rows, weights = keys.transpose(1, 2).flatten(2), counted.unsqueeze(-1).float()
        if not count.numel():
            # A first guess of the mean, so that little cancels when the true one is taken off.
            count = weights.new_zeros(len(rows), 1)
            centre = (rows * weights).sum(1) / weights.sum(1).clamp(min=1)
            sums, gram = torch.zeros_like(centre), rows.new_zeros(len(rows), rows.shape[2], rows.shape[2])
        rows = (rows - centre.unsqueeze(1)) * weights
        gram, sums, count = gram + rows.transpose(1, 2) @ rows, sums + rows.sum(1), count + weights.sum(1)
    count = count.clamp(min=1)
    gram = gram - sums.unsqueeze(2) * sums.unsqueeze(1) / count.unsqueeze(2)
    axes = torch.linalg.eigh(gram).eigenvectors[..., -rank:]
    return Basis((centre + sums / count).unflatten(1, (heads, -1)), axes.unflatten(1, (heads, -1)))
