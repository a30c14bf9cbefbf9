"""One decode step that reads a selection: index what left the window, attend, select, attend, merge.

Legend: B batch, H query heads, Hkv KV heads, G = H / Hkv, Q queries, N cached tokens, D head size.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from keyhole.attention import Logits, Part, merge
from keyhole.cache.request import Request
from keyhole.core.break_even import ALWAYS, BreakEven
from keyhole.core.budget import Budget
from keyhole.core.layout import Regions, visible_slots
from keyhole.core.masks import Visible
from keyhole.selection import Selection, Selector, Step
from keyhole.selection.sampled import read_to_error
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
        error: float32 `[B, Hkv]`, a bound of the relative error of the output at 95% confidence, the greatest
            of the query heads of a group; None where none is estimated.
    """

    part: Part
    selection: Selection
    regions: Regions
    index_bytes: int
    rest: Part | None = None
    error: Tensor | None = None


class Chosen(Protocol):
    """What a step reads beside what it always reads, and how the rest is estimated."""

    @property
    def selection(self) -> Selection: ...

    @property
    def error(self) -> Tensor | None: ...

    def rest(self, step: Step, anchor: Part) -> Part | None:
        """Attention of the step's queries over what is not read; None where it counts as zero."""
        ...


class Picked(NamedTuple):
    """A selector's own choice."""

    selection: Selection
    selector: Selector
    error: Tensor | None = None

    def rest(self, step: Step, anchor: Part) -> Part | None:  # noqa: ARG002
        return self.selector.rest(step, self.selection)


class StepReader:
    """Reads by a selector's choice, and keeps its index up to date."""

    def __init__(self, selector: Selector, reading: StepBudget, request: Request, place: int = 0) -> None:
        self.selector, self.reading, self.request, self.place = selector, reading, request, place

    def wants_all(self, tokens: int, context: int, batch: int) -> bool:
        """Whether a step is to read all of `tokens`: selecting would not pay, or the budget allows it.

        It may pay for a `batch` of several sequences from another length on. Budgets are shares of the
        `context`, which is longer where tokens were evicted.
        """
        candidates = tokens - self.reading.sinks - self.reading.window
        budget = self.reading.budget
        allowed = not budget.varies and candidates <= budget.limit(context)
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
        chosen = self._choose(step, anchor)
        selection = chosen.selection
        part = storage.attend_beside(anchor, query, selection.slots, selection.counts, logits)
        rest = chosen.rest(step, anchor)
        part = part if rest is None else merge(part, rest)
        return Read(part, selection, parts, self.selector.bytes_read(step), rest, chosen.error)

    def _choose(self, step: Step, anchor: Part) -> Chosen:
        """What a step reads beside what it always reads, of which `anchor` is the attention."""
        if step.budget.error is not None:
            return read_to_error(self.selector, step, anchor, self.place)
        return Picked(_shown(self.selector.select(step), step.regions), self.selector)

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
        chosen = self._choose(step, anchor)
        selection = chosen.selection
        # To a storage they are so many more query heads of each group.
        every = queries.flatten(1, 2)
        found = storage.attend(every, selection.slots, selection.counts, logits)
        own = Part(*(torch.stack(parts, dim=1) for parts in zip(*anchors, strict=True)))
        begun = logits.with_sinks(own.lse).transpose(1, 2).flatten(1, 2)
        rest = chosen.rest(step._replace(query=every, anchor_lse=begun), _by_head(own))
        found = found if rest is None else merge(found, rest)
        rest = None if rest is None else _by_query(rest, count)
        part = merge(own, _by_query(found, count))
        return Read(part, selection, parts, self.selector.bytes_read(step), rest, chosen.error)

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


def _by_head(part: Part) -> Part:
    """A part of `[B, Q, H]` as one of `[B, H * Q]`."""
    return Part(*(field.transpose(1, 2).flatten(1, 2) for field in part))


def _by_query(part: Part, queries: int) -> Part:
    """A part of `[B, H * Q]` as one of `[B, Q, H]`."""
    return Part(*(field.unflatten(1, (-1, queries)).transpose(1, 2) for field in part))


def _shown(selection: Selection, parts: Regions) -> Selection:
    """What was picked, without the slots that must not be read: padding behind a row's first token."""
    if parts.hidden is None:
        return selection
    slots, counts = visible_slots(selection.slots, selection.counts, parts.hidden)
    return selection._replace(slots=slots, counts=counts)
