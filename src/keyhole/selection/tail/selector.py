"""A selector beside which the rest is estimated."""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.attention import Logits, Part
from keyhole.core.layout import Regions, packed_slots
from keyhole.core.needs import Needs
from keyhole.selection.base import Estimates, Selection, Selector, Step
from keyhole.selection.picking.rank import pick
from keyhole.selection.shown import Shown
from keyhole.selection.tail.clusters import Clusters
from keyhole.selection.tail.estimate import Known, corrected_logits, tail_part
from keyhole.selection.tail.known import by_cluster
from keyhole.storage import Storage

_OWN = "tail."  # what names of the state of clusters begin with


class TailSelector(Selector):
    """Picks as `inner`, and estimates the rest by `clusters`.

    Args:
        by_tokens: where `inner` knows a logit of each token, unread tokens differ by these within a cluster.
            Where they are estimates, a budget of tokens goes to the largest of them, put right by clusters.
    """

    def __init__(self, inner: Selector, clusters: Clusters, *, by_tokens: bool) -> None:
        self.inner, self.clusters = inner, clusters
        self._by_tokens = by_tokens and type(inner).token_logits is not Selector.token_logits
        self._shown = Shown()
        self._ranked: tuple[Step, Tensor] | None = None  # the step that was picked for, and its estimates
        self.reads_all, self.leads, self.one_list = inner.reads_all, inner.leads, inner.one_list

    @property
    def needs(self) -> Needs:
        return self.inner.needs

    def crops_exactly(self, length: int) -> bool:
        return self.inner.crops_exactly(length)

    @property
    def minimum(self) -> int:
        return self.inner.minimum

    @property
    def stale(self) -> bool:
        return self.inner.stale

    def build(self, keys: Tensor, regions: Regions) -> None:
        self.clusters.crop(0)
        self.inner.build(keys, regions)
        self.length = self.inner.length

    def refit(self, keys: Tensor, regions: Regions) -> None:
        self.inner.refit(keys, regions)
        self.length = self.inner.length

    def append(self, keys: Tensor) -> None:
        self.inner.append(keys)
        self.length = self.inner.length

    def summarise(self, storage: Storage, regions: Regions) -> None:
        moments = None if self.clusters.length else self._shown.moments(regions)
        self.clusters.update(storage, regions, moments)

    def select(self, step: Step) -> Selection:
        ranked = self.inner.by_estimates and not step.budget.varies
        estimates = self._token_logits(step) if ranked else None
        if estimates is None:
            return self.inner.select(step)
        self._ranked = step, estimates
        return pick(corrected_logits(estimates, step.query, self.clusters, step.logits), step)

    def estimates(self, step: Step) -> Estimates | None:
        known = self.inner.estimates(step)
        return None if known is None else by_cluster(known, self.clusters, step)

    def rest(self, step: Step, selection: Selection) -> Part:
        ranked, self._ranked = self._ranked, None
        estimates = ranked[1] if ranked and ranked[0] is step else self._token_logits(step)
        known = known_tokens(selection, step.regions)
        return tail_part(step.query, self.clusters, step.storage, known, step.logits, estimates)

    def _token_logits(self, step: Step) -> Tensor | None:
        return self.inner.token_logits(step) if self._by_tokens else None

    def see(self, queries: Tensor, kv_heads: int, tokens: int) -> None:
        self._shown.see(queries, kv_heads, tokens)
        self.inner.see(queries, kv_heads, tokens)

    def see_hidden_states(self, hidden: Tensor) -> None:
        self.inner.see_hidden_states(hidden)

    def see_queries(self, queries: Tensor, storage: Storage) -> None:
        self.inner.see_queries(queries, storage)

    def watch(self, query: Tensor, storage: Storage, regions: Regions, logits: Logits) -> None:
        self.inner.watch(query, storage, regions, logits)

    def expect(self, steps: int) -> None:
        self.inner.expect(steps)

    def bytes_read(self, step: Step) -> int:
        clusters = self.clusters
        tokens = step.regions.last if self._by_tokens else step.regions.always.shape[1] + max(step.limits())
        labels = tokens * clusters.labels.element_size()
        return self.inner.bytes_read(step) + clusters.cluster_bytes + labels

    def crop(self, length: int) -> None:
        self.inner.crop(length)
        self.length = self.inner.length
        self.clusters.crop(length)

    def reorder(self, rows: Tensor) -> None:
        self.inner.reorder(rows)
        self._shown.reorder(rows)
        self.clusters.reorder(rows)

    def state(self) -> dict[str, Tensor]:
        own = {_OWN + name: tensor for name, tensor in self.clusters.state().items()}
        return self.inner.state() | own

    def restore(self, state: dict[str, Tensor], length: int) -> None:
        own = {name: tensor for name, tensor in state.items() if name.startswith(_OWN)}
        self.inner.restore({name: tensor for name, tensor in state.items() if name not in own}, length)
        self.clusters.restore({name.removeprefix(_OWN): tensor for name, tensor in own.items()})
        self.length = self.inner.length

    @property
    def nbytes(self) -> int:
        return self.inner.nbytes + self.clusters.nbytes


def known_tokens(selection: Selection, regions: Regions) -> Known:
    """What is read, what is always read, and what must not be seen."""
    heads = selection.slots.shape[1]
    parts = [(selection.slots, selection.counts), regions.always_by_head(heads)]
    if regions.hidden is not None:
        hidden = regions.hidden.unsqueeze(1).expand(-1, heads, -1)
        parts.append(packed_slots(hidden & (_index(hidden) >= regions.first.view(-1, 1, 1))))
    meant = [_index(slots) < counts.unsqueeze(-1) for slots, counts in parts]
    return Known(torch.cat([slots for slots, _ in parts], -1), torch.cat(meant, -1))


def _index(rows: Tensor) -> Tensor:
    return torch.arange(rows.shape[-1], device=rows.device)
