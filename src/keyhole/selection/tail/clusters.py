"""Summaries of what is stored: clusters of similar tokens with the sums of their keys and values.

Legend: B batch, Hkv KV heads, N tokens, T tokens of a piece, C clusters, D and E size of keys and of values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole import kernels
from keyhole.core.layout import Regions
from keyhole.selection.quantisers.kmeans import kmeans
from keyhole.selection.tail.metric import factors, joined
from keyhole.selection.tail.sums import SummedRows
from keyhole.storage import GrowingBuffer, Storage

_PIECE = 8192  # tokens that are clustered together: time grows with the square of it
_NONE = -1  # label of tokens that are in no cluster
_NARROW = torch.iinfo(torch.int16).max  # the most clusters that labels of 16 bits tell apart


class Clusters:
    """Clusters of about `tokens` tokens, found by k-means for each KV head and each piece of the sequence.

    Alike are tokens of near values whose logits differ little, for queries such as were shown. Padding and
    sinks are in no cluster. What is generated comes in pieces of its own, as it leaves the window, so that
    nothing that was summarised changes. Sums are held as `dtype`, float32, bfloat16 or int8.
    """

    def __init__(self, tokens: int, iterations: int, dtype: torch.dtype) -> None:
        self.tokens, self.iterations, self.dtype = tokens, iterations, dtype
        self._clear()

    def _clear(self) -> None:
        self._labels = GrowingBuffer()  # int16 or int32 `[B, Hkv, N, 1]`, the cluster of each slot
        self._factors: Tensor | None = None  # float32 `[B, Hkv, D, D]`, of the queries' second moment
        self._keys, self._values = SummedRows(self.dtype), SummedRows(self.dtype)  # `[B, Hkv, C, D or E]`
        self._counts = GrowingBuffer()  # int32 `[B, Hkv, C, 1]`
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
        return self._keys.view()

    @property
    def values(self) -> Tensor:
        """Sums of values, `[B, Hkv, C, E]`."""
        return self._values.view()

    def update(self, storage: Storage, regions: Regions, moments: Tensor | None = None) -> None:
        """Summarise what is stored and was not, once some of it has left the window.

        Args:
            moments: float32 `[B, Hkv, D, D]`, second moments of queries; asked for by the first piece.
        """
        if self.length and self.length >= regions.last:
            return
        if not self.length:
            self._clear()
            self._factors = None if moments is None else factors(moments)
        keys, values = storage.keys(self.length), storage.values(self.length)
        first = regions.first.tolist()
        for begin in range(0, keys.shape[2], _PIECE):
            piece = slice(begin, begin + _PIECE)
            self._add(keys[:, :, piece], values[:, :, piece], first)

    def _add(self, keys: Tensor, values: Tensor, first: list[int]) -> None:
        """One more piece; of each batch row the slots from `first` on count."""
        start, size, clusters = self.length, keys.shape[2], self._keys.length
        begins = [min(max(begin - start, 0), size) for begin in first]
        count = max(-(-(size - begin) // self.tokens) for begin in begins)
        labels = torch.full(keys.shape[:3], _NONE, dtype=torch.long, device=keys.device)
        for begin in set(begins) - {size}:
            rows = [row for row, own in enumerate(begins) if own == begin]
            along = None if self._factors is None else self._factors[rows]
            points = joined(keys[rows, :, begin:], values[rows, :, begin:], along)
            labels[rows, :, begin:] = self._clustered(points)
        for part, held in ((keys, self._keys), (values, self._values)):
            held.append(_sums(part, labels, count))
        counts = _sums(torch.ones_like(keys[..., :1]), labels, count)
        self._counts.append(counts.int())
        self._label(torch.where(labels >= 0, labels + clusters, labels), clusters + count)
        self._pieces.append((start + size, clusters + count))

    def _label(self, labels: Tensor, clusters: int) -> None:
        """Append `labels [B, Hkv, T]`, as narrow as so many clusters allow."""
        dtype = torch.int16 if clusters <= _NARROW else torch.int32
        if self.length and self.labels.dtype != dtype:
            wider, self._labels = self._labels.view().to(dtype), GrowingBuffer()
            self._labels.append(wider)
        self._labels.append(labels.to(dtype).unsqueeze(-1))

    def _clustered(self, points: Tensor) -> Tensor:
        """Labels `[b, Hkv, T]` of `points [b, Hkv, T, W]`; they depend on no other row of the batch."""
        heads = points.shape[:2]
        points = points.flatten(0, 1)
        count = -(-points.shape[1] // self.tokens)
        generator = torch.Generator().manual_seed(0)
        centroids = kmeans(points, count, iterations=self.iterations, generator=generator)
        return kernels.kmeans_assign(points, centroids).long().unflatten(0, heads)

    def crop(self, length: int) -> None:
        """Forget at least the slots from `length` on: pieces that reach beyond it are forgotten whole."""
        kept = [piece for piece in self._pieces if piece[0] <= length]
        if not kept:
            self._clear()
        elif len(kept) < len(self._pieces):
            self._pieces, (tokens, clusters) = kept, kept[-1]
            self._labels.crop(tokens)
            for buffer in self._buffers:
                buffer.crop(clusters)

    @property
    def _buffers(self) -> tuple[GrowingBuffer, ...]:
        """One row for each cluster."""
        return *self._keys.buffers, *self._values.buffers, self._counts

    def reorder(self, rows: Tensor) -> None:
        """Take the batch rows `rows`, in that order."""
        if self.length:
            for buffer in (self._labels, *self._buffers):
                buffer.reorder(rows)
        if self._factors is not None:
            self._factors = self._factors.index_select(0, rows.to(self._factors.device))

    def state(self) -> dict[str, Tensor]:
        """What is held, as named tensors."""
        if not self.length:
            return {}
        held = {"labels": self._labels.view(), "counts": self._counts.view()}
        held |= self._keys.state("keys") | self._values.state("values")
        held["pieces"] = torch.tensor(self._pieces)
        return held if self._factors is None else held | {"factors": self._factors}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over a `state`."""
        self._clear()
        if state:
            self._labels.append(state["labels"])
            self._factors = state.get("factors")
            self._counts.append(state["counts"])
            self._keys.restore("keys", state)
            self._values.restore("values", state)
            self._pieces = [(tokens, clusters) for tokens, clusters in state["pieces"].tolist()]

    @property
    def cluster_bytes(self) -> int:
        """Bytes of all summaries of one KV head of a batch row, labels apart."""
        return sum(buffer.view()[0, 0].nbytes for buffer in self._buffers) if self.length else 0

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        held = 0 if self._factors is None else self._factors.nbytes
        return held + sum(buffer.nbytes for buffer in (self._labels, *self._buffers))


def _sums(rows: Tensor, labels: Tensor, count: int) -> Tensor:
    """Sums, float32 `[B, Hkv, count, W]`, of `rows [B, Hkv, T, W]` by label; negative ones are left out."""
    sums = rows.new_zeros(*rows.shape[:2], count + 1, rows.shape[-1], dtype=torch.float32)
    places = labels.where(labels >= 0, count).unsqueeze(-1).expand(rows.shape)
    return sums.scatter_add_(2, places, rows.float())[:, :, :count]
