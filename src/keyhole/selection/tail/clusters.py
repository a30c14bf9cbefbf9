"""Clusters of what is stored, with the sums of keys and of values.

Legend: B batch, Hkv KV heads, N tokens, C clusters, D and E size of keys and of values.
"""

from __future__ import annotations

from torch import Tensor

from keyhole.core.layout import Regions
from keyhole.selection.quantisers.keyclusters import PIECE, KeyClusters, sums_by_label
from keyhole.selection.quantisers.sums import SummedRows
from keyhole.selection.tail.metric import factors, joined
from keyhole.storage import Storage


class Clusters(KeyClusters):
    """Clusters that know the values of their tokens, too.

    Filled by `update`, alike are tokens of near values whose logits differ little, for queries such as were
    shown; filled by `take` and `take_values`, those of near keys.
    """

    def _clear(self) -> None:
        super()._clear()
        self._sums["values"] = SummedRows(self.dtype)
        self._factors: Tensor | None = None  # float32 `[B, Hkv, D, D]`, of the queries' second moment

    @property
    def values(self) -> Tensor:
        """Sums of values, `[B, Hkv, C, E]`."""
        return self._sums["values"].view()

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
        begin, first = self.length, regions.first.tolist()
        known = storage.values(begin)
        pieces = (part.split(PIECE, dim=2) for part in (storage.keys(begin), known))
        for keys, values in zip(*pieces, strict=True):
            self._add(keys, first, lambda *which, k=keys, v=values: self._joined(k, v, *which))
        self._sum_values(known, begin)

    def _joined(self, keys: Tensor, values: Tensor, rows: list[int], begin: int) -> Tensor:
        along = None if self._factors is None else self._factors[rows]
        return joined(keys[rows, :, begin:], values[rows, :, begin:], along)

    def take_values(self, storage: Storage) -> None:
        """Summarise the values of what was clustered since."""
        known = self._sums["values"].length
        begin = max((tokens for tokens, clusters in self._pieces if clusters <= known), default=0)
        if begin == self.length:
            return
        self._sum_values(storage.values(begin)[:, :, : self.length - begin], begin)

    def _sum_values(self, values: Tensor, begin: int) -> None:
        """Append the sums of `values [B, Hkv, T, E]`, of the slots from `begin` on."""
        known = self._sums["values"].length
        labels, count = self.labels[:, :, begin:].long() - known, self._counts.length - known
        self._sums["values"].append(sums_by_label(values, labels, count), values.dtype)

    def reorder(self, rows: Tensor) -> None:
        super().reorder(rows)
        if self._factors is not None:
            self._factors = self._factors.index_select(0, rows.to(self._factors.device))

    def state(self) -> dict[str, Tensor]:
        held = super().state()
        return held if not held or self._factors is None else held | {"factors": self._factors}

    def restore(self, state: dict[str, Tensor]) -> None:
        super().restore(state)
        self._factors = state.get("factors")

    @property
    def nbytes(self) -> int:
        return super().nbytes + (0 if self._factors is None else self._factors.nbytes)
