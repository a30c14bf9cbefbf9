"""Pages shared by layers (DELTA): a few layers read everything, and note which pages the next ones may read.

Source: "DELTA: Dynamic Layer-Aware Token Attention for Efficient Long-Context Reasoning", arXiv 2510.09883.

Legend: B batch, H query heads, Hkv KV heads, N tokens, P pages, D head size.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from keyhole import kernels
from keyhole.attention import Logits, key_logits
from keyhole.core.layout import Regions
from keyhole.core.leader_board import LeaderBoard
from keyhole.selection.base import Selection, Step, Unindexed
from keyhole.selection.exact import key_bytes
from keyhole.selection.picking.pages import pick_pages, spans
from keyhole.storage import Storage


class Role(Enum):
    """What a layer does: reads everything, does so and leads those behind it, leads them but reads only the
    keys of everything, or follows.
    """

    DENSE = "dense"
    LEADER = "leader"
    RANKER = "ranker"
    FOLLOWER = "follower"


class Ranking(NamedTuple):
    """What a leader saw of the competing pages, one list for all heads.

    Attributes:
        scores: `[B, 1, P]`, the greatest probability that any head gives a token, summed over the page.
        shares: `[B, Hkv, P]`, the attention on the page, a mean over the query heads of a group.
        anchored: `[B, Hkv]`, that on the always-read tokens and the sink logit.
        length: tokens there were.
    """

    scores: Tensor
    shares: Tensor
    anchored: Tensor
    length: int

    def pick(self, step: Step, page: int) -> Selection:
        """The pages that the step's budget allows, slots and counts as one list, mass by KV head."""
        return pick_pages(self.scores, self.shares, self.anchored, step, page)


class _Pinned:
    """A ranking, and the pages picked by it, once they are."""

    def __init__(self, ranking: Ranking) -> None:
        self.ranking = ranking
        self.picked: Selection | None = None


class Board:
    """Where one leader pins its ranking, and the first that follows it the pages picked by it."""

    def __init__(self) -> None:
        self._pinned: LeaderBoard[_Pinned] = LeaderBoard()

    def hold(self, steps: int) -> None:
        """Hold what is pinned for so many steps, the newest ones."""
        self._pinned.hold(steps)

    def pin(self, ranking: Ranking | None) -> None:
        """Hold a ranking, in place of an older one; None clears the board."""
        if ranking is None:
            self._pinned.clear()
        else:
            self._pinned.pin(_moment(ranking.length), _Pinned(ranking))

    def pick(self, step: Step, page: int) -> Selection:
        """The pages to be read, picked once: one list, the same for all that follow.

        Raises:
            ValueError: the leader has not seen this step.
        """
        pinned = self._pinned.read(_moment(step.regions.length))
        if pinned.picked is None:
            pinned.picked = pinned.ranking.pick(step, page)
        return pinned.picked


def _moment(tokens: int) -> str:
    return f"a step of {tokens} tokens"


class SharedPageSelector(Unindexed):
    """One layer's part in the sharing. A follower without a board reads the newest pages."""

    def __init__(self, role: Role, board: Board | None, page: int) -> None:
        self.role, self.board, self.page = role, board, page
        self.reads_all, self.leads = role in (Role.DENSE, Role.LEADER), role is Role.LEADER

    def watch(self, query: Tensor, storage: Storage, regions: Regions, logits: Logits) -> None:
        assert self.board is not None
        self.board.pin(_ranking(query, storage, regions, logits, self.page))

    def select(self, step: Step) -> Selection:
        if self.role is Role.RANKER:
            self.watch(step.query, step.storage, step.regions, step.logits)
        source = _newest(step.regions, self.page) if self.board is None else self.board
        picked = source.pick(step, self.page)
        return _for_heads(picked, step.storage.keys(step.storage.length - 1).shape[1])

    def bytes_read(self, step: Step) -> int:
        if self.role is not Role.RANKER:
            return 0
        return step.regions.last * key_bytes(step.storage)

    def expect(self, steps: int) -> None:
        if self.board is not None:
            self.board.hold(steps)

    def crop(self, length: int) -> None:
        super().crop(length)
        self._forget()

    def release(self, length: int) -> None:
        super().release(length)
        self._forget()

    def reorder(self, rows: Tensor) -> None:  # noqa: ARG002
        self._forget()

    def _forget(self) -> None:
        """What was ranked is of no use to another step, even to one of the same length."""
        if self.board is not None:
            self.board.pin(None)


def _for_heads(picked: Selection, kv_heads: int) -> Selection:
    """The one list for so many KV heads; where a leader had another number, their mean mass is all heads'."""
    slots, counts, mass = picked
    if mass.shape[1] != kv_heads:
        mass = mass.mean(1, keepdim=True).expand(-1, kv_heads)
    return Selection(slots[:, :1].expand(-1, kv_heads, -1), counts[:, :1].expand(-1, kv_heads), mass)


def _ranking(query: Tensor, storage: Storage, regions: Regions, logits: Logits, page: int) -> Ranking:
    sinks = None if logits.sink_logits is None else logits.sink_logits.expand(query.shape[:2])
    pooled = storage.pooled(
        query,
        kernels.Span(regions.starts, regions.ends, regions.first, regions.stop, regions.last),
        kernels.Pooling(logits.scale, logits.softcap, page=page, largest=True),
        score_extra=sinks,
        share_extra=sinks,
    )
    return Ranking(pooled.scores, pooled.shares, 1 - pooled.shares.sum(-1), regions.length)


def attention_shares(query: Tensor, keys: Tensor, regions: Regions, how: Logits) -> Tensor:
    """Softmax of `query [B, H, D]` over all of `keys [B, Hkv, N, D]` but padding, float32 `[B, H, N]`."""
    logits = key_logits(query, keys, how).flatten(1, 2)
    for row, unused in zip(logits, regions.padding, strict=True):
        row[:, :unused] = -torch.inf
    total = how.with_sinks(logits.logsumexp(-1))
    return logits.sub_(total.unsqueeze(-1)).exp_()


def _newest(regions: Regions, page: int) -> Ranking:
    """The newest pages first, with attention taken to be even."""
    _, sizes = spans(regions, page)
    context = (regions.ends - regions.starts).unsqueeze(1)
    pages = torch.arange(sizes.shape[1], dtype=torch.float32, device=sizes.device)
    order = pages.masked_fill(sizes == 0, -torch.inf)
    anchored = regions.always_counts.unsqueeze(1) / context
    return Ranking(order.unsqueeze(1), (sizes / context).unsqueeze(1), anchored, regions.length)
