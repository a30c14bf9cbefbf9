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

from keyhole.core.axes import principal_axes


class Basis(NamedTuple):
    """The axes along which keys of a batch row are kept.

    Attributes:
        mean: float32 `[B, Hkv, D]`.
        axes: float32 `[B, Hkv, D, R]`, orthogonal over all heads together, each as long as the same power of
            two, which is 1 unless coefficients would be out of the range of their type.
    """

    mean: Tensor
    axes: Tensor

    def project(self, keys: Tensor) -> Tensor:
        """Coefficients float32 `[B, 1, T, R]` of `keys [B, Hkv, T, D]` before rotation, for all heads."""
        products = ((keys - self.mean.unsqueeze(2)) @ self.axes).sum(1, keepdim=True)
        length = self.axes[..., 0].square().sum((1, 2)).sqrt().log2().round()
        return products / torch.exp2(2 * length).view(-1, 1, 1, 1)

    def within(self, largest: Tensor, dtype: torch.dtype) -> Basis:
        """With axes so long that coefficients of keys up to `largest [B]` are numbers of a type."""
        width = self.axes.shape[1] * self.axes.shape[2]
        # No channel is further than that from the mean.
        bound = 2 * largest.double() * width**0.5 / torch.finfo(dtype).max
        length = torch.exp2(bound.clamp(min=2.0**-1).log2().ceil() + 1).clamp(min=1.0)
        return self._replace(axes=self.axes * length.float().view(-1, 1, 1, 1))

    def rebuild(self, coefficients: Tensor) -> Tensor:
        """Keys before rotation `[B, Hkv, S, D]`, of `coefficients [B, 1 or Hkv, S, R]`."""
        return coefficients.float() @ self.axes.transpose(-1, -2) + self.mean.unsqueeze(2)

    def reorder(self, rows: Tensor) -> Basis:
        """Of the batch rows `rows`, in that order."""
        return Basis(*(tensor.index_select(0, rows) for tensor in self))


def default_rank(kv_heads: int, head_dim: int) -> int:
    """As published, 160 of 1,024 numbers of a key; half of them where there are fewer.

    More would save no memory: landmarks, exact keys and those rebuilt for a step are held beside.
    """
    return max(1, min(160, kv_heads * head_dim // 2))


def fit_basis(pieces: Iterable[tuple[Tensor, Tensor]], rank: int, scales: Tensor | None = None) -> Basis:
    """The basis of least squared error.

    Args:
        pieces: keys `[B, Hkv, T, D]` before rotation, float32, and bool `[B, T]`, which of them count.
        rank: R, at most Hkv * D; with that every key is met exactly.
        scales: `[B]`, powers of two that keys are divided by; None leaves them as they are.
    """
    centre = sums = gram = count = torch.empty(0)
    heads = 1
    for keys, counted in pieces:
        heads = keys.shape[1]
        keys = keys if scales is None else keys / scales.view(-1, 1, 1, 1)
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
    axes = principal_axes(gram)[1][..., -rank:]
    mean = centre + sums / count
    mean = mean if scales is None else mean * scales.unsqueeze(1)
    return Basis(mean.unflatten(1, (heads, -1)), axes.unflatten(1, (heads, -1)))
