"""Clusters of what is stored, with the sums of keys and of values.

Legend: B batch, Hkv KV heads, N tokens, C clusters, E size of values.
"""

from __future__ import annotations

from torch import Tensor

from keyhole.core.layout import Regions
from keyhole.selection.quantisers.keyclusters import KeyClusters
from keyhole.storage import GrowingBuffer, Storage


class Clusters(KeyClusters):
    """Clusters of similar keys that know the values of their tokens, too."""

    def _clear(self) -> None:
        super()._clear()
        self._sums["values"] = GrowingBuffer()

    @property
    def values(self) -> Tensor:
        """Sums of values, `[B, Hkv, C, E]`."""
        return self._sums["values"].view()

    def update(self, storage: Storage, regions: Regions) -> None:
        """Summarise what is stored and was not, once some of it has left the window."""
        if self.length and self.length >= regions.last:
            return
        self.take(storage.keys(self.length), regions.first.tolist())
        self.take_values(storage)

    def take_values(self, storage: Storage) -> None:
        """Summarise the values of what was clustered since."""
        known = self._sums["values"].length
        begin = max((tokens for tokens, clusters in self._pieces if clusters <= known), default=0)
        if begin == self.length:
            return
        values = storage.values(begin)[:, :, : self.length - begin]
        labels, count = self.labels[:, :, begin:].long() - known, self._sums["keys"].length - known
        self._sums["values"].append(self._summed(values, labels, count))
