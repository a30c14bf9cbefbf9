"""One decode step that reads a selection: index what left the window, attend, select, attend, merge.

Legend: B batch, H query heads, Hkv KV heads, G = H / Hkv, N cached tokens, D head size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from keyhole.attention import Logits, Part, attend_slots, merge
from keyhole.budget import Budget
from keyhole.regions import Regions, regions
from keyhole.selection import Selection, Selector, Step


class Reading(NamedTuple):
    """How much a decode step reads: `budget` tokens beside the first `sinks` and the newest `window`.

    Below `dense_below` tokens it reads everything.
    """

    budget: Budget
    sinks: int
    window: int
    dense_below: int = 0


class Read(NamedTuple):
    """What one selective step read, and what came of it.

    Attributes:
        part: exact attention over what was read, out `[B, H, D]`, lse `[B, H]`.
        selection: what was read beside sinks and window.
        regions: the parts of the sequence at this step.
        index_bytes: bytes of the index read for each KV head.
    """

    part: Part
    selection: Selection
    regions: Regions
    index_bytes: int


class Reader:
    """Reads by a selector's choice, and keeps its index up to date."""

    def __init__(self, selector: Selector, reading: Reading) -> None:
        self.selector, self.reading = selector, reading

    def wants_all(self, tokens: int) -> bool:
        """Whether a step is to read all of `tokens`: selecting would not pay, or the budget allows it."""
        candidates = tokens - self.reading.sinks - self.reading.window
        budget = self.reading.budget
        allowed = budget.mass is None and candidates <= budget.limit(tokens)
        return tokens < self.reading.dense_below or allowed or candidates < self.selector.minimum

    def read(self, query: Tensor, keys: Tensor, values: Tensor, logits: Logits, mask: Tensor | None) -> Read:
        """Attend `query [B, H, D]` to the part of `keys`, `values [B, Hkv, N, D]` that the selector picks."""
        parts = self.index(keys, mask)
        anchor = attend_slots(query, keys, values, parts.always, parts.always_counts, logits)
        step = Step(
            query,
            keys,
            parts.first,
            parts.last,
            anchor.lse,
            logits.scale,
            logits.softcap,
            self.reading.budget,
        )
        selection = self.selector.select(step)
        found = attend_slots(query, keys, values, selection.slots, selection.counts, logits)
        return Read(merge(anchor, found), selection, parts, self.selector.bytes_read(step))

    def index(self, keys: Tensor, mask: Tensor | None) -> Regions:
        """Index every token that has left the window; new ones wait there, so they are indexed in batches."""
        tokens = keys.shape[2]
        padding = (0,) if mask is None else left_padding(mask)
        if len(padding) == 1:
            padding *= keys.shape[0]
        parts = regions(tokens, padding, self.reading.sinks, self.reading.window, keys.device)
        if self.selector.length == 0 or self.selector.stale:
            self.selector.build(keys, parts.first)
        elif self.selector.length < parts.last:
            self.selector.append(keys[:, :, self.selector.length :])
        return parts


def left_padding(mask: Tensor) -> tuple[int, ...]:
    """Unused slots at the start of each batch row, from the mask `[B or 1, 1, 1, N]` of the newest token.

    Raises:
        ValueError: slots are masked elsewhere than at the start.
    """
    seen = mask[:, 0, -1]
    padding = (~seen).sum(-1)
    begins = seen.int().argmax(-1)
    if not torch.equal(padding, begins):
        raise ValueError(
            "the attention mask hides tokens inside the sequence; Keyhole takes batches padded on the left, "
            "so set tokenizer.padding_side = 'left'"
        )
    return tuple(padding.tolist())
