"""Clusters of similar keys, wherever they lie: found piece by piece, with the sums of their keys.

Legend: B batch, Hkv KV heads, N tokens, T tokens of a piece, C clusters, D size of keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole import kernels
from keyhole.core.scales import scales_of
from keyhole.selection.quantisers.kmeans import kmeans
from keyhole.storage import GrowingBuffer

METRICS = ("euclidean", "cosine", "centred")
_PIECE = 8192  # tokens that are clustered together: time grows with the square of it
_NONE = -1  # label of tokens that are in no cluster


class KeyClusters:
    """Clusters of about `tokens` keys, found by k-means for each KV head and each piece of the sequence.

    Padding and sinks are in no cluster. What is generated comes in pieces of its own, so that nothing that
    was summarised changes.

    Args:
        tokens: of a cluster, on average.
        iterations: of Lloyd's algorithm.
        dtype: of sums, float32 or bfloat16; None is float32 for float32 keys and bfloat16 for others.
        metric: what is near: by Euclidean distance, by the cosine, or by that about a piece's mean key.
    """

    def __init__(
        self, tokens: int, iterations: int, dtype: torch.dtype | None, metric: str = "euclidean"
    ) -> None:
        self.tokens, self.iterations, self.dtype, self.metric = tokens, iterations, dtype, metric
        self._clear()

    def _clear(self) -> None:
        self._labels = GrowingBuffer()  # int32 `[B, Hkv, N, 1]`, the cluster of each slot
        # One row for each cluster: sums `[B, Hkv, C, D]` and int32 `[B, Hkv, C, 1]`.
        self._sums = {"keys": GrowingBuffer(), "counts": GrowingBuffer()}
        self._pieces: list[tuple[int, int]] = []  # tokens and clusters there were after each piece

    @property
    def length(self) -> int:
        """Slots that are summarised."""
        return self._labels.length

    @property
    def labels(self) -> Tensor:
        """The cluster of each slot, int32 `[B, Hkv, N]`, negative for slots in none."""
        return self._labels.view().squeeze(-1)

    @property
    def counts(self) -> Tensor:
        """Tokens of each cluster, int32 `[B, Hkv, C]`."""
        return self._sums["counts"].view().squeeze(-1)

    @property
    def keys(self) -> Tensor:
        """Sums of keys, `[B, Hkv, C, D]`."""
        return self._sums["keys"].view()

    def take(self, keys: Tensor, first: list[int]) -> None:
        """Cluster `keys [B, Hkv, T, D]`, which follow; of each batch row the slots from `first` on count."""
        for piece in keys.split(_PIECE, dim=2):
            self._add(piece, first)

    def _add(self, keys: Tensor, first: list[int]) -> None:
        start, size, clusters = self.length, keys.shape[2], self._sums["keys"].length
        begins = [min(max(begin - start, 0), size) for begin in first]
        count = max(-(-(size - begin) // self.tokens) for begin in begins)
        labels = torch.full(keys.shape[:3], _NONE, dtype=torch.long, device=keys.device)
        for begin in set(begins) - {size}:
            rows = [row for row, own in enumerate(begins) if own == begin]
            labels[rows, :, begin:] = self._clustered(keys[rows, :, begin:])
        self._sums["keys"].append(self._summed(keys, labels, count))
        self._sums["counts"].append(sums_by_label(torch.ones_like(keys[..., :1]), labels, count).int())
        labels = torch.where(labels >= 0, labels + clusters, labels)
        self._labels.append(labels.int().unsqueeze(-1))
        self._pieces.append((start + size, clusters + count))

    def _clustered(self, keys: Tensor) -> Tensor:
        """Labels `[b, Hkv, T]` of `keys [b, Hkv, T, D]`; they depend on no other row of the batch."""
        points, spherical = keys.flatten(0, 1).float(), self.metric != "euclidean"
        points = points / scales_of(points)[:, None, None]
        if self.metric == "centred":
            points = points - points.mean(1, keepdim=True)
        count = -(-points.shape[1] // self.tokens)
        generator = torch.Generator().manual_seed(0)
        centroids = kmeans(
            points, count, iterations=self.iterations, generator=generator, spherical=spherical
        )
        return kernels.kmeans_assign(points, centroids).long().unflatten(0, keys.shape[:2])

    def _summed(self, rows: Tensor, labels: Tensor, count: int) -> Tensor:
        whole = rows.dtype == torch.float32
        dtype = self.dtype or (torch.float32 if whole else torch.bfloat16)
        return sums_by_label(rows, labels, count).to(dtype)

    def crop(self, length: int) -> None:
        """Forget at least the slots from `length` on: pieces that reach beyond it are forgotten whole."""
        kept = [piece for piece in self._pieces if piece[0] <= length]
        if not kept:
            self._clear()
        elif len(kept) < len(self._pieces):
            self._pieces, (tokens, clusters) = kept, kept[-1]
            self._labels.crop(tokens)
            for sums in self._sums.values():
                sums.crop(clusters)

    def reorder(self, rows: Tensor) -> None:
        """Take the batch rows `rows`, in that order."""
        if self.length:
            for buffer in (self._labels, *self._sums.values()):
                buffer.reorder(rows)

    def state(self) -> dict[str, Tensor]:
        """What is held, as named tensors."""
        if not self.length:
            return {}
        held = {name: sums.view() for name, sums in self._sums.items()}
        return held | {"labels": self._labels.view(), "pieces": torch.tensor(self._pieces)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over a `state`."""
        self._clear()
        if state:
            self._labels.append(state["labels"])
            for name, sums in self._sums.items():
                sums.append(state[name])
            self._pieces = [(tokens, clusters) for tokens, clusters in state["pieces"].tolist()]

    @property
    def cluster_bytes(self) -> int:
        """Bytes of all summaries of one KV head of a batch row, labels apart."""
        return sum(sums.view()[0, 0].nbytes for sums in self._sums.values()) if self.length else 0

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(buffer.nbytes for buffer in (self._labels, *self._sums.values()))


def sums_by_label(rows: Tensor, labels: Tensor, count: int) -> Tensor:
    """Sums, float32 `[B, Hkv, count, W]`, of `rows [B, Hkv, T, W]` by label; negative ones are left out."""
    sums = rows.new_zeros(*rows.shape[:2], count + 1, rows.shape[-1], dtype=torch.float32)
    places = labels.where(labels >= 0, count).unsqueeze(-1).expand(rows.shape)
    return sums.scatter_add_(2, places, rows.float())[:, :, :count]
