"""Clusters of similar keys, ranked by their centroids (ClusterKV, RetroInfer).

Sources: "ClusterKV: Manipulating LLM KV Cache in Semantic Space for Recallable Compression", arXiv
2412.03213; "RetroInfer: A Vector-Storage Approach for Scalable Long-Context LLM Inference", arXiv 2505.02922.

Legend: B batch, Hkv KV heads, G query heads of each, C clusters, D head size.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from torch import Tensor

from keyhole import kernels
from keyhole.attention import Part
from keyhole.core.layout import Regions
from keyhole.kernels.pq.tables import softcapped
from keyhole.selection.base import Selection, Step
from keyhole.selection.grouped import GroupLogs, GroupSelector, RankedGroups
from keyhole.selection.picking.groups import Groups
from keyhole.selection.quantisers.keyclusters import KeyClusters
from keyhole.selection.tail import Clusters, known_tokens, tail_part
from keyhole.storage import Storage

_Kept = TypeVar("_Kept", bound=KeyClusters)


class CentroidSelector(GroupSelector, Generic[_Kept]):
    """Reads whole clusters, in the order of their mean keys' attention, the last one in part.

    Query heads of a group agree by their mean share of attention. What leaves the window is clustered by
    itself, so clusters that are there stay as they are.
    """

    def __init__(self, clusters: _Kept) -> None:
        super().__init__()
        self.clusters = clusters
        self._first: list[int] = []  # slots of each batch row that are in no cluster

    @property
    def minimum(self) -> int:
        return self.clusters.tokens + 1

    def build(self, keys: Tensor, regions: Regions) -> None:
        self.clusters.crop(0)
        self._first = regions.first.tolist()
        self.append(keys)

    def append(self, keys: Tensor) -> None:
        self.clusters.take(keys, self._first)
        self.length = self.clusters.length

    def _ranked(self, step: Step) -> RankedGroups:
        count = self.clusters.keys.shape[2]
        groups = Groups.of(self.clusters.labels.clamp(min=0), count, step)
        return GroupLogs.of(self._logits(step), groups, step).ranked(groups)

    def _logits(self, step: Step) -> Tensor:
        """Those of the mean keys, float32 `[B, Hkv, G, C]`."""
        sums = self.clusters.keys
        query = step.query.unflatten(1, (sums.shape[1], -1)).float().flatten(0, 1)
        scale, count = step.logits.scale, sums.shape[2]
        products = kernels.exact_scores(query, sums.flatten(0, 1), 0, count, scale=scale)
        means = products.unflatten(0, sums.shape[:2]) / self.clusters.counts.clamp(min=1).unsqueeze(2)
        return softcapped(means, step.logits.softcap)

    def bytes_read(self, step: Step) -> int:
        labels = step.regions.last * self.clusters.labels.element_size()
        return self.clusters.cluster_bytes + labels + self._mass_control.bytes_read(step)

    def crop(self, length: int) -> None:
        self.clusters.crop(length)
        self.length = self.clusters.length
        self._mass_control.crop(length)

    def reorder(self, rows: Tensor) -> None:
        self.clusters.reorder(rows)
        self._first = [self._first[row] for row in rows.tolist()] if self._first else []
        self._mass_control.reorder(rows)

    def state(self) -> dict[str, Tensor]:
        if self.length == 0:
            return {}
        first = self.clusters.labels.new_tensor(self._first)
        return self.clusters.state() | {"first": first} | self._mass_control.state()

    def restore(self, state: dict[str, Tensor], length: int) -> None:
        super().restore(state, length)
        self.clusters.restore(state)
        self._first = state["first"].tolist() if state else []
        self._mass_control.restore(state)

    @property
    def nbytes(self) -> int:
        return self.clusters.nbytes + self._mass_control.nbytes


class ZoneSelector(CentroidSelector[Clusters]):
    """Reads the best clusters, and estimates the others by their mean keys and values."""

    def summarise(self, storage: Storage, regions: Regions) -> None:  # noqa: ARG002
        self.clusters.take_values(storage)

    def rest(self, step: Step, selection: Selection) -> Part:
        known = known_tokens(selection, step.regions)
        return tail_part(step.query, self.clusters, step.storage, known, step.logits)
