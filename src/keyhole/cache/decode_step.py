"""One decode step that reads a selection: index what left the window, attend, select, attend, merge.

Legend: B batch, H query heads, Hkv KV heads, G = H / Hkv, Q queries, N cached tokens, D head size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from keyhole.attention import Logits, Part, merge
from keyhole.cache.request import Request
from keyhole.core.break_even import ALWAYS, BreakEven
from keyhole.core.budget import Budget
from keyhole.core.layout import Regions, visible_slots
from keyhole.core.masks import Visible
from keyhole.selection import Selection, Selector, Step
from keyhole.storage import Storage


class StepBudget(NamedTuple):
    """How much a decode step reads: `budget` tokens beside the first `sinks` and the newest `window`.

    Below `dense_below` tokens it reads everything.
    """

    budget: Budget
    sinks: int
    window: int
    dense_below: BreakEven = ALWAYS


class Read(NamedTuple):
    """What one selective step read, and what came of it.

    Attributes:
        part: exact attention over what was read, and the estimate of the rest where there is one: out
            `[B, H, D]`, lse `[B, H]`.
        selection: what was read beside sinks and window.
        regions: the parts of the sequence at this step.
        index_bytes: bytes of the index read for each KV head.
        rest: the estimate, which is merged into `part`; None where what is not read counts as zero.
    """

    part: Part
    selection: Selection
    regions: Regions
    index_bytes: int
    rest: Part | None = None


class StepReader:
    """Reads by a selector's choice, and keeps its index up to date."""

    def __init__(self, selector: Selector, reading: StepBudget, request: Request) -> None:
        self.selector, self.reading, self.request = selector, reading, request

    def wants_all(self, tokens: int, context: int, batch: int) -> bool:
        """Whether a step is to read all of `tokens`: selecting would not pay, or the budget allows it.

        It may pay for a `batch` of several sequences from another length on. Budgets are shares of the
        `context`, which is longer where tokens were evicted.
        """
        candidates = tokens - self.reading.sinks - self.reading.window
        budget = self.reading.budget
        allowed = budget.mass is None and candidates <= budget.limit(context)
        short = tokens < self.reading.dense_below.at(batch) or candidates < self.selector.minimum
        return self.selector.reads_all or short or allowed

    def leads(self, tokens: int, batch: int) -> bool:
        """Whether the layer is read whole for what others read by it, rather than for being short."""
        least = max(self.reading.dense_below.at(batch), self.selector.minimum)
        return self.selector.leads and tokens >= least

    def read(
        self,
        query: Tensor,
        storage: Storage,
        logits: Logits,
        seen: Visible,
        context: tuple[int, ...] | None = None,
    ) -> Read:
        """Attend `query [B, H, D]` to the part of what is stored that the selector picks."""
        parts = self.index(storage, seen, context)
        anchor = storage.attend(query, *parts.always_by_head(storage.heads), logits)
        step = Step(query, storage, parts, logits.with_sinks(anchor.lse), logits, self.reading.budget)
        selection = _shown(self.selector.select(step), parts)
        part = storage.attend_beside(anchor, query, selection.slots, selection.counts, logits)
        rest = self.selector.rest(step, selection)
        part = part if rest is None else merge(part, rest)
        return Read(part, selection, parts, self.selector.bytes_read(step), rest)

    def read_together(
        self,
        queries: Tensor,
        storage: Storage,
        logits: Logits,
        seen: Visible,
        context: tuple[int, ...] | None = None,
    ) -> Read:
        """Attend `queries [B, H, Q, D]` of the newest tokens to one selection, which `electing` picks.

        Each also reads the sinks, the window before the first of them, and those of them that came before it.

        Returns:
            What was read once for all of them; of the part out `[B, Q, H, D]`, lse `[B, Q, H]`.
        """
        count = queries.shape[2]
        parts = self.index(storage, seen, context, together=count)
        anchors, asked = [], self.electing(queries, storage)
        for place in range(count):
            visible = parts.always_counts - (count - 1 - place)
            anchors.append(storage.attend(queries[:, :, place], parts.always, visible, logits))
        anchor = storage.attend(asked, parts.always, parts.always_counts, logits)
        step = Step(asked, storage, parts, logits.with_sinks(anchor.lse), logits, self.reading.budget)
        selection = _shown(self.selector.select(step), parts)
        # To a storage they are so many more query heads of each group.
        found = storage.attend(queries.flatten(1, 2), selection.slots, selection.counts, logits)
        rest = self.selector.rest(step._replace(query=queries.flatten(1, 2)), selection)
        found = found if rest is None else merge(found, rest)
        rest = None if rest is None else _by_query(rest, count)
        own = Part(*(torch.stack(parts, dim=1) for parts in zip(*anchors, strict=True)))
        part = merge(own, _by_query(found, count))
        return Read(part, selection, parts, self.selector.bytes_read(step), rest)

    def electing(self, queries: Tensor, storage: Storage) -> Tensor:
        """The query `[B, H, D]` that stands for `queries [B, H, Q, D]` of the newest tokens of one call.

        It is their mean; of a call that ends the prompt the last, since the first answer comes of that one.
        """
        if self.request.prompt_length == storage.length:
            return queries[:, :, -1]
        return queries.float().mean(2).to(queries.dtype)

    @torch.no_grad()
    def watch(self, query: Tensor, storage: Storage, logits: Logits, seen: Visible) -> None:
        """Let a leading layer's selector see a step that reads everything."""
        self.selector.watch(query, storage, self.index(storage, seen), logits)

    def index(
        self, storage: Storage, seen: Visible, context: tuple[int, ...] | None = None, *, together: int = 1
    ) -> Regions:
        """Index every token that has left the window; new ones wait there, so they are indexed in batches.

        Args:
            together: how many of the newest tokens ask; the window is that of the first of them.

        Raises:
            ValueError: the newest token sees nothing of its row.
        """
        if max(seen.padding) >= storage.length:
            raise ValueError(
                "the attention mask hides the whole sequence from its newest token; remove that row"
            )
        sinks, window = self.reading.sinks, self.reading.window + together - 1
        parts = self.request.regions(storage.length, seen, sinks, window, storage.device, context)
        try:
            if self.selector.length == 0:
                self.selector.build(storage.keys(), parts)
            elif self.selector.stale:
                self.selector.refit(storage.keys(), parts)
            elif self.selector.length < parts.last:
                self.selector.append(storage.keys(self.selector.length))
            self.selector.summarise(storage, parts)
        except BaseException:
            self.selector.crop(0)  # half an index is none
            raise
        # Last, so that an index is made of keys as they came.
        storage.settle(parts)
        return parts


def _by_query(part: Part, queries: int) -> Part:
    """A part of `[B, H * Q]` as one of `[B, Q, H]`."""
    return Part(*(field.unflatten(1, (-1, queries)).transpose(1, 2) for field in part))


def _shown(selection: Selection, parts: Regions) -> Selection:
    """What was picked, without the slots that must not be read: padding behind a row's first token."""
    if parts.hidden is None:
        return selection
    slots, counts = visible_slots(selection.slots, selection.counts, parts.hidden)
    return selection._replace(slots=slots, counts=counts)
