"""Fitting a product quantiser: codebooks, the axes they lie along, and the second moment of what they miss.

Legend: R rows (batch x KV heads), T keys, D head size, M sub-spaces, C centroids of each.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from keyhole import kernels
from keyhole.selection.quantisers.kmeans import kmeans
from keyhole.selection.quantisers.rotation import aligning_rotation, balanced_rotation
from keyhole.selection.quantisers.uncertainty import residual_moment

_SEED = 0
_ALTERNATIONS = 3
_ALTERNATION_ITERATIONS = 4
_ALTERNATION_KEYS = 2048  # enough for a rotation; the codebooks that are kept are fitted to all


class Quantiser(NamedTuple):
    """A fitted product quantiser.

    Attributes:
        codebooks: float32 `[R, M, C, D / M]`.
        residuals: float32 `[R, D, D]`, second moment of keys minus their centroids, along quantised axes.
        rotation: float32 `[R, D, D]`, orthogonal; `keys @ rotation` is quantised. None for the channels.
    """

    codebooks: Tensor
    residuals: Tensor
    rotation: Tensor | None


class Codes(NamedTuple):
    """The size of a code: so many sub-spaces of so many bits; Lloyd iterations to fit it."""

    subspaces: int
    bits: int
    iterations: int


def fit(keys: Tensor, codes: Codes) -> Quantiser:
    """Fit along the channels of `keys [R, T, D]`, float32."""
    return _fit_along(keys, None, codes)


def fit_rotated(keys: Tensor, codes: Codes, queries: Tensor | None) -> Quantiser:
    """Fit along learnt axes: of two rotations, for each row the one that distorts logits less.

    Balanced principal axes leave the least error where queries look in all directions. Where they look
    along a dominant axis of the keys, that axis needs more than the few bits of one sub-space, and a rotation
    that spreads it over many is better.

    Args:
        queries: second moment `[R, D, D]` of queries; None takes all directions alike.
    """
    balanced = _fit_along(keys, balanced_rotation(keys, codes.subspaces), codes)
    if queries is None:
        return balanced
    spread = _fit_along(keys, _alternate(keys, codes), codes)
    better = (_distortion(spread, queries) < _distortion(balanced, queries)).tolist()
    return Quantiser(*(_choose(better, *pair) for pair in zip(spread, balanced, strict=True)))


def decode(codes: Tensor, codebooks: Tensor) -> Tensor:
    """The vectors `[R, T, D]` that codes `[R, T, M]` stand for."""
    index = codes.long().transpose(1, 2).unsqueeze(-1).expand(-1, -1, -1, codebooks.shape[-1])
    return codebooks.gather(2, index).transpose(1, 2).flatten(2)


def _fit_along(keys: Tensor, rotation: Tensor | None, codes: Codes) -> Quantiser:
    points = keys if rotation is None else keys @ rotation
    books = _codebooks(points, codes)
    residuals = points - decode(kernels.pq_encode(points, books), books)
    return Quantiser(books, residual_moment(residuals), rotation)


def _codebooks(points: Tensor, codes: Codes) -> Tensor:
    pieces = points.unflatten(-1, (codes.subspaces, -1)).transpose(1, 2)
    generator = torch.Generator().manual_seed(_SEED)
    problems = pieces.flatten(0, 1).contiguous()
    centroids = kmeans(problems, 2**codes.bits, iterations=codes.iterations, generator=generator)
    return centroids.unflatten(0, pieces.shape[:2])


def _alternate(keys: Tensor, codes: Codes) -> Tensor:
    """Codebooks and rotation fitted in turns, from the channels on (Ge et al. 2013, non-parametric).

    `keys` come in random order: the first ones are a sample.
    """
    keys = keys[:, :_ALTERNATION_KEYS]
    codes = codes._replace(iterations=min(codes.iterations, _ALTERNATION_ITERATIONS))
    rotation = torch.eye(keys.shape[-1], device=keys.device).expand(keys.shape[0], -1, -1)
    for _ in range(_ALTERNATIONS):
        points = keys @ rotation
        books = _codebooks(points, codes)
        rotation = aligning_rotation(keys, decode(kernels.pq_encode(points, books), books))
    return rotation


def _distortion(fitted: Quantiser, queries: Tensor) -> Tensor:
    """Mean squared error `[R]` that the residuals make in the products with queries."""
    assert fitted.rotation is not None
    along = fitted.rotation.transpose(1, 2) @ queries @ fitted.rotation
    return (along * fitted.residuals).sum((1, 2))


def _choose(first_is_better: list[bool], first: Tensor | None, second: Tensor | None) -> Tensor:
    assert first is not None
    assert second is not None
    pairs = zip(first_is_better, first, second, strict=True)
    return torch.stack([row if better else other for better, row, other in pairs])
