"""Codebooks of whole keys, fitted so that logits, not keys, are met best (A2ATS).

Source: "A2ATS: Retrieval-Based KV Cache Reduction via Windowed Rotary Position Embedding and Query-Aware
Vector Quantization", arXiv 2502.12665.

Legend: B batch, K codebooks (1 that all batch rows share, or B), Hkv KV heads, G query heads of each,
T tokens, C codewords, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from keyhole import kernels
from keyhole.core.digest import digest
from keyhole.core.scales import scales_of
from keyhole.selection.quantisers.kmeans import kmeans

_SEED = 0
_FLOOR = 1e-6  # added to the second moment of queries, relative to its entries
_TOLERANCE = 1e-4
_EVEN = 0.1  # of all directions alike in a moment of few queries


class Codebook(NamedTuple):
    """Codewords of each KV head, in the metric in which squared errors are those of logits.

    With the second moment of queries H = L L', the mean squared error of a logit is that of the key in the
    metric, |(k - c) L|^2.

    Attributes:
        points: float32 `[K, Hkv, C, D]`, the codewords c L.
        metric: float32 `[K, Hkv, D, D]`, L, lower triangular.
        inverse: float32 `[K, Hkv, D, D]`, of L.
    """

    points: Tensor
    metric: Tensor
    inverse: Tensor

    @classmethod
    def of(cls, points: Tensor, metric: Tensor) -> Codebook:
        """Of `points` and `metric`, shapes as above."""
        one = torch.eye(metric.shape[-1], dtype=torch.float64, device=metric.device)
        return cls(points, metric, torch.linalg.solve_triangular(metric.double(), one, upper=False).float())

    @property
    def digest(self) -> Tensor:
        """What tells it from others, uint8 `[64]`."""
        text = digest(self.points) + digest(self.metric)
        return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)

    def encode(self, keys: Tensor) -> Tensor:
        """The nearest codeword of each of `keys [B, Hkv, T, D]`, of equals the lower: int32 `[B, Hkv, T]`."""
        batch = keys.shape[0]
        labels = kernels.kmeans_assign(
            self._folded(keys) @ self.metric.flatten(0, 1), self.points.flatten(0, 1)
        )
        return self._unfolded(labels.unsqueeze(-1), batch).squeeze(-1)

    def products(self, query: Tensor, scale: float) -> Tensor:
        """Scaled products of `query [B, Hkv, G, D]` with the codewords, float32 `[B, Hkv, G, C]`."""
        points, batch = self.points.flatten(0, 1), query.shape[0]
        query = self._folded(query) @ self.inverse.flatten(0, 1).transpose(1, 2)
        return self._unfolded(kernels.exact_scores(query, points, 0, points.shape[1], scale=scale), batch)

    def map(self, change: Callable[[Tensor], Tensor]) -> Codebook:
        """Each of the tensors changed."""
        return Codebook(*map(change, self))

    def __deepcopy__(self, memo: dict[int, object]) -> Codebook:
        """The same one: its tensors are never written to, and one that was given serves all requests."""
        return self

    def _folded(self, vectors: Tensor) -> Tensor:
        """`[B, Hkv, T, D]` with the batch rows that share a codebook as one, `[K * Hkv, B / K * T, D]`."""
        shared = vectors.float().unflatten(0, (len(self.points), -1)).transpose(1, 2)
        return shared.flatten(2, 3).flatten(0, 1)

    def _unfolded(self, found: Tensor, batch: int) -> Tensor:
        books, heads = self.points.shape[:2]
        return (
            found.unflatten(0, (books, heads))
            .unflatten(2, (batch // books, -1))
            .transpose(1, 2)
            .flatten(0, 1)
        )


def fit_codebook(
    keys: Tensor, moment: Tensor | None, codewords: int, *, iterations: int, spread: bool
) -> Codebook:
    """One codebook for each of K sets of keys and each KV head.

    Args:
        keys: float32 `[K, Hkv, T, D]`, at position 0; T >= codewords.
        moment: float32 `[K, Hkv, D, D]`, the second moment of queries at the constant position, of any scale;
            None takes all directions alike.
        spread: as in `kmeans`.
    """
    metric = torch.eye(keys.shape[-1], device=keys.device).expand(*keys.shape[:2], -1, -1)
    metric = metric.contiguous() if moment is None else query_metric(moment)
    # Part of the metric, so that callers need not know.
    metric = metric / scales_of(keys)[..., None, None]
    generator = torch.Generator().manual_seed(_SEED)
    points = kmeans(
        (keys @ metric).flatten(0, 1),
        codewords,
        iterations=iterations,
        generator=generator,
        spread=spread,
        tolerance=_TOLERANCE,
    )
    return Codebook.of(points.unflatten(0, keys.shape[:2]), metric)


def together(books: list[Codebook]) -> Codebook:
    """Codebooks of one set of keys each as one; the last codeword of a smaller one is there again.

    A key goes to the lower of equal codewords, so none goes to what was added.
    """
    most = max(book.points.shape[2] for book in books)
    points = [_repeated(book.points, most) for book in books]
    return Codebook(torch.cat(points), *(torch.cat([book[at] for book in books]) for at in (1, 2)))


def _repeated(points: Tensor, most: int) -> Tensor:
    last = points[:, :, -1:].expand(-1, -1, most - points.shape[2], -1)
    return torch.cat([points, last], 2)


def rounded_out(moment: Tensor) -> Tensor:
    """A `moment [..., D, D]` of few queries, with a share of all directions alike; of a scale of its own."""
    moment = moment / moment.abs().amax((-2, -1), keepdim=True).clamp(min=torch.finfo(moment.dtype).tiny)
    even = moment.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    one = torch.eye(moment.shape[-1], device=moment.device)
    return moment + (_EVEN * even).clamp(min=_FLOOR) * one


def query_metric(moment: Tensor) -> Tensor:
    """The lower triangular L of H = L L', for `moment [..., D, D]` of any scale."""
    moment = moment.double()
    size = moment.square().mean((-2, -1), keepdim=True).sqrt()
    one = torch.eye(moment.shape[-1], dtype=torch.float64, device=moment.device)
    return torch.linalg.cholesky(moment / size + _FLOOR * one).float()
