"""Clusters of similar keys, wherever they lie: found piece by piece, with the sums of their keys.

Legend: B batch, Hkv KV heads, N tokens, T tokens of a piece, C clusters, D size of keys.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from keyhole import kernels
from keyhole.core.scales import scales_of
from keyhole.selection.quantisers.kmeans import kmeans
from keyhole.selection.quantisers.sums import SummedRows
from keyhole.storage import GrowingBuffer

METRICS = ("euclidean", "cosine", "centred")
PIECE = 8192  # tokens that are clustered together: time grows with the square of it
_NONE = -1  # label of tokens that are in no cluster
_NARROW = torch.iinfo(torch.int16).max  # the most clusters that labels of 16 bits tell apart
# Points to cluster, float32 `[b, Hkv, t, W]`, of the given batch rows, from the given place in the piece on.
Points = Callable[[list[int], int], Tensor]


class KeyClusters:
    """Clusters of about `tokens` keys, found by k-means for each KV head and each piece of the sequence.

    Padding and sinks are in no cluster. What is generated comes in pieces of its own, so that nothing that
    was summarised changes.

    Args:
        tokens: of a cluster, on average.
        iterations: of Lloyd's algorithm.
        dtype: of sums, float32, bfloat16 or int8; None is float32 for float32 keys and bfloat16 for others.
        metric: what is near: by Euclidean distance, by the cosine, or by that about a piece's mean key.
    """

    def __init__(
        self, tokens: int, iterations: int, dtype: torch.dtype | None, metric: str = "euclidean"
    ) -> None:
        self.tokens, self.iterations, self.dtype, self.metric = tokens, iterations, dtype, metric
        self._clear()

    def _clear(self) -> None:
        self._labels = GrowingBuffer()  # int16 or int32 `[B, Hkv, N, 1]`, the cluster of each slot
        self._counts = GrowingBuffer()  # int32 `[B, Hkv, C, 1]`
        self._sums = {"keys": SummedRows(self.dtype)}  # `[B, Hkv, C, D]`
        self._pieces: list[tuple[int, int]] = []  # tokens and clusters there were after each piece

    @property
    def length(self) -> int:
        """Slots that are summarised."""
        return self._labels.length

    @property
    def labels(self) -> Tensor:
        """The cluster of each slot, int16 or int32 `[B, Hkv, N]`, negative for slots in none."""
        return self._labels.view().squeeze(-1)

    @property
    def counts(self) -> Tensor:
        """Tokens of each cluster, int32 `[B, Hkv, C]`."""
        return self._counts.view().squeeze(-1)

    @property
    def keys(self) -> Tensor:
        """Sums of keys, `[B, Hkv, C, D]`."""
        return self._sums["keys"].view()

    def take(self, keys: Tensor, first: list[int]) -> None:
        """Cluster `keys [B, Hkv, T, D]`, which follow; of each batch row the slots from `first` on count."""
        for piece in keys.split(PIECE, dim=2):
            self._add(piece, first, lambda rows, begin, piece=piece: self._scaled(piece[rows, :, begin:]))

    def _add(self, keys: Tensor, first: list[int], points: Points) -> None:
        """One more piece, whose tokens are as far apart as `points` says."""
        start, size, clusters = self.length, keys.shape[2], self._counts.length
        begins = [min(max(begin - start, 0), size) for begin in first]
        count = max(-(-(size - begin) // self.tokens) for begin in begins)
        labels = torch.full(keys.shape[:3], _NONE, dtype=torch.long, device=keys.device)
        for begin in set(begins) - {size}:
            rows = [row for row, own in enumerate(begins) if own == begin]
            labels[rows, :, begin:] = self._clustered(points(rows, begin))
        self._sums["keys"].append(sums_by_label(keys, labels, count), keys.dtype)
        self._counts.append(sums_by_label(torch.ones_like(keys[..., :1]), labels, count).int())
        self._label(torch.where(labels >= 0, labels + clusters, labels), clusters + count)
        self._pieces.append((start + size, clusters + count))

    def _label(self, labels: Tensor, clusters: int) -> None:
        """Append `labels [B, Hkv, T]`, as narrow as so many clusters allow."""
        dtype = torch.int16 if clusters <= _NARROW else torch.int32
        if self.length and self.labels.dtype != dtype:
            wider, self._labels = self._labels.view().to(dtype), GrowingBuffer()
            self._labels.append(wider)
        self._labels.append(labels.to(dtype).unsqueeze(-1))

    def _scaled(self, keys: Tensor) -> Tensor:
        """Points `[b, Hkv, T, D]` by the metric, of numbers whose squares are in range."""
        points = keys.float()
        points = points / scales_of(points.flatten(0, 1)).view(*points.shape[:2], 1, 1)
        return points - points.mean(2, keepdim=True) if self.metric == "centred" else points

    def _clustered(self, points: Tensor) -> Tensor:
        """Labels `[b, Hkv, T]` of `points [b, Hkv, T, W]`; they depend on no other row of the batch."""
        heads, points = points.shape[:2], points.flatten(0, 1)
        count = -(-points.shape[1] // self.tokens)
        centroids = kmeans(
            points,
            count,
            iterations=self.iterations,
            generator=torch.Generator().manual_seed(0),
            spherical=self.metric != "euclidean",
        )
        return kernels.kmeans_assign(points, centroids).long().unflatten(0, heads)

    def crop(self, length: int) -> None:
        """Forget at least the slots from `length` on: pieces that reach beyond it are forgotten whole."""
        kept = [piece for piece in self._pieces if piece[0] <= length]
        if not kept:
            self._clear()
        elif len(kept) < len(self._pieces):
            self._pieces, (tokens, clusters) = kept, kept[-1]
            self._labels.crop(tokens)
            for buffer in self._by_cluster:
                buffer.crop(clusters)

    @property
    def _by_cluster(self) -> list[GrowingBuffer]:
        """One row for each cluster."""
        return [self._counts, *(buffer for sums in self._sums.values() for buffer in sums.buffers)]

    def reorder(self, rows: Tensor) -> None:
        """Take the batch rows `rows`, in that order."""
        if self.length:
            for buffer in (self._labels, *self._by_cluster):
                buffer.reorder(rows)

    def state(self) -> dict[str, Tensor]:
        """What is held, as named tensors."""
        if not self.length:
            return {}
        held = {"labels": self._labels.view(), "counts": self._counts.view()}
        for name, sums in self._sums.items():
            held |= sums.state(name)
        return held | {"pieces": torch.tensor(self._pieces)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over a `state`."""
        self._clear()
        if state:
            self._labels.append(state["labels"])
            self._counts.append(state["counts"])
            for name, sums in self._sums.items():
                sums.restore(name, state)
            self._pieces = [(tokens, clusters) for tokens, clusters in state["pieces"].tolist()]

    @property
    def cluster_bytes(self) -> int:
        """Bytes of all summaries of one KV head of a batch row, labels apart."""
        return sum(buffer.view()[0, 0].nbytes for buffer in self._by_cluster) if self.length else 0

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(buffer.nbytes for buffer in (self._labels, *self._by_cluster))


def sums_by_label(rows: Tensor, labels: Tensor, count: int) -> Tensor:
    """Sums, float32 `[B, Hkv, count, W]`, of `rows [B, Hkv, T, W]` by label; negative ones are left out."""
    sums = rows.new_zeros(*rows.shape[:2], count + 1, rows.shape[-1], dtype=torch.float32)
    places = labels.where(labels >= 0, count).unsqueeze(-1).expand(rows.shape)
    return sums.scatter_add_(2, places, rows.float())[:, :, :count]
