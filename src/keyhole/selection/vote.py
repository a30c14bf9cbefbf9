"""Soft vote (TokenSelect): every query head spreads one vote over all tokens, the most voted for are read.

Source: "TokenSelect: Efficient Long-Context Inference and Length Extrapolation for LLMs via Dynamic
Token-Level KV Cache Selection", arXiv 2411.02886, equation 7. There, keys are scored before RoPE
(`distant.py`), and positions are counted from 0 within what is read (`keyhole.storage.renumber`).

Legend: B batch, H query heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from keyhole import kernels
from keyhole.core.layout import Regions
from keyhole.selection.base import Selection, Step
from keyhole.selection.exact import ExactSelector
from keyhole.selection.picking.pages import pick_pages


class Vote:
    """How votes are cast and counted.

    Args:
        per_head: one list of tokens for each KV head, by its own query heads; else one list for all.
        scaled: a vote is the softmax of the logits that attention uses; else of logits that are not scaled
            down, so that a head's vote goes to few tokens.
    """

    def __init__(self, *, per_head: bool, scaled: bool) -> None:
        self.per_head, self.scaled = per_head, scaled

    def elect(self, *steps: Step) -> Selection:
        """The competing tokens of most votes that the budget allows, for each KV head.

        Args:
            steps: of one layer at one time, by different queries: all of them vote. To a step, queries of a
                head beyond the first are so many more heads of its group.
        """
        counted = [self._count(step) for step in steps]
        voters = [step.query.shape[1] for step in steps]
        scores, shares, anchored = (_weighted(parts, voters) for parts in zip(*counted, strict=True))
        return pick_pages(scores, shares, anchored, steps[0], 1)

    def _count(self, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """Votes `[B, L, N]`, and shares of attention `[B, Hkv, N]` and of what is always read `[B, Hkv]`."""
        first, stop, last, how = step.regions.first, step.regions.stop, step.regions.last, step.logits
        pooled = step.storage.pooled(
            step.query,
            kernels.Span(first, stop, first, stop, last),
            kernels.Pooling(
                how.scale,
                how.softcap,
                sharpness=1.0 if self.scaled else 1 / how.scale,
                per_head=self.per_head,
            ),
            share_extra=step.anchor_lse,
        )
        anchored = (step.anchor_lse - torch.logaddexp(step.anchor_lse, pooled.lse)).exp()
        anchored = anchored.unflatten(1, (pooled.shares.shape[1], -1)).mean(-1)
        return pooled.scores, pooled.shares, anchored


def _weighted(parts: Sequence[Tensor], weights: Sequence[int]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    total = sum(weights)
    return torch.stack([part * (weight / total) for part, weight in zip(parts, weights, strict=True)]).sum(0)


class Elected(NamedTuple):
    """What was elected, and by which `query [B, H, D]`."""

    query: Tensor
    selection: Selection


class VoteSelector(ExactSelector):
    """Elects tokens in each step, or keeps them while the query stays alike (the Selection Cache).

    With `reuse`, a batch row keeps its tokens as long as the cosine of its query, all heads put together, and
    of the query that elected them is above it. Sinks and window are up to date in any case, but what has left
    the window since is not read before the next election: as published, and the reason why it is off.
    """

    def __init__(self, vote: Vote, reuse: float | None = None) -> None:
        self.vote, self.reuse = vote, reuse
        self.one_list = not vote.per_head
        self._kept: Elected | None = None
        self._elected = True

    @property
    def varying(self) -> str:
        return "" if self.reuse is None else "with reuse it elects in some steps only"

    def select(self, step: Step) -> Selection:
        if self.reuse is None:
            return self.vote.elect(step)
        alike = self._alike(step.query, self.reuse)
        self._elected = not bool(alike.all())
        if self._kept is None or self._elected:
            self._kept = _renewed(self._kept, Elected(step.query, self.vote.elect(step)), alike)
        return self._kept.selection

    def _alike(self, query: Tensor, least: float) -> Tensor:
        """Bool `[B]`."""
        if self._kept is None:
            return torch.zeros(len(query), dtype=torch.bool, device=query.device)
        cosine = F.cosine_similarity(query.flatten(1).float(), self._kept.query.flatten(1).float())
        # Rounding may go beyond 1, and a bound of 1 is to mean never.
        return cosine.clamp(max=1) > least

    def bytes_read(self, step: Step) -> int:
        return super().bytes_read(step) if self._elected else 0

    def build(self, keys: Tensor, regions: Regions) -> None:
        super().build(keys, regions)
        self._kept = None

    def see(self, queries: Tensor, kv_heads: int, tokens: int) -> None:  # noqa: ARG002
        # What was elected knows nothing of a prompt that came since.
        self._kept = None

    def crop(self, length: int) -> None:
        super().crop(length)
        self._kept = None

    def reorder(self, rows: Tensor) -> None:
        if self._kept is not None:
            query, selection = self._kept
            rows = rows.to(query.device)
            taken = Selection(*(field.index_select(0, rows) for field in selection))
            self._kept = Elected(query.index_select(0, rows), taken)

    def state(self) -> dict[str, Tensor]:
        return {} if self._kept is None else {"query": self._kept.query, **self._kept.selection._asdict()}

    def restore(self, state: dict[str, Tensor], length: int) -> None:
        super().restore(state, length)
        fields = dict(state)
        self._kept = Elected(fields.pop("query"), Selection(**fields)) if fields else None


def _renewed(old: Elected | None, new: Elected, keep: Tensor) -> Elected:
    """The rows `keep [B]` of the old, the others of the new."""
    if old is None or not keep.any():
        return new
    width = max(kept.selection.slots.shape[-1] for kept in (old, new))
    pairs = zip(
        (old.query, *_padded(old.selection, width)), (new.query, *_padded(new.selection, width)), strict=True
    )
    query, *fields = (torch.where(keep.view(-1, *[1] * (a.dim() - 1)), a, b) for a, b in pairs)
    return Elected(query, Selection(*fields))


def _padded(selection: Selection, width: int) -> Selection:
    return selection._replace(slots=F.pad(selection.slots, (0, width - selection.slots.shape[-1])))
