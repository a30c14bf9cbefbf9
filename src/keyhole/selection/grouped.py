"""Selectors whose tokens rank in groups: a base of those that have codewords or clusters."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from keyhole.selection.base import Selection, Selector, Step
from keyhole.selection.mass_control import Estimate, MassControl
from keyhole.selection.picking.groups import Groups, pick_groups


class RankedGroups(NamedTuple):
    """What a step makes of the groups; C groups, G query heads of a KV head.

    Attributes:
        groups: which slot is in which.
        scores: `[B, Hkv, C]`, by which groups are read.
        shares: float32 `[B, Hkv, C]`, of attention on one token of a group.
        anchored: float32 `[B, Hkv]`, on the always-read tokens.
    """

    groups: Groups
    scores: Tensor
    shares: Tensor
    anchored: Tensor


class GroupLogs(NamedTuple):
    """Logarithms of shares of attention: of one token of a group `[B, Hkv, G, C]`, and of the always-read
    ones `[B, Hkv, G]`. Those of groups of which nothing competes are -inf.
    """

    token: Tensor
    anchor: Tensor

    @classmethod
    def of(cls, logits: Tensor, groups: Groups, step: Step) -> GroupLogs:
        """By the `logits [B, Hkv, G, C]` of a token of each group."""
        sizes = groups.sizes.unsqueeze(2)
        logits = logits.masked_fill(sizes == 0, -torch.inf)
        anchor = step.anchor_lse.view(logits.shape[:3])
        total = torch.logaddexp((logits + sizes.log()).logsumexp(-1), anchor)
        return cls(logits - total.unsqueeze(-1), anchor - total)

    def ranked(self, groups: Groups, scores: Tensor | None = None) -> RankedGroups:
        """By `scores`; without any by the mean share of a token, over the query heads of a KV head."""
        shares, anchored = (part.exp().mean(2) for part in self)
        # As logarithms: shares may be too small to tell apart.
        scores = self.token.logsumexp(2) if scores is None else scores
        return RankedGroups(groups, scores, shares, anchored)


class GroupSelector(Selector):
    """Reads groups of tokens, in the order of their scores, until the budget is full."""

    def __init__(self) -> None:
        self._mass_control = MassControl()

    @abstractmethod
    def _ranked(self, step: Step) -> RankedGroups:
        """The groups of a step."""

    def see(self, queries: Tensor, kv_heads: int, tokens: int) -> None:  # noqa: ARG002
        self._mass_control.see(queries, tokens)

    def select(self, step: Step) -> Selection:
        reach = self._mass_control.reach(step, self._estimate)
        groups, scores, shares, anchored = self._ranked(step)
        if reach is None:
            picked = pick_groups(scores, shares, anchored, groups, step)
            return self._mass_control.told(picked, step, self._estimate)
        picked = pick_groups(scores, shares, anchored, groups, step, reach.share)
        return picked._replace(mass=reach.held(picked.mass))

    def _estimate(self, step: Step) -> Estimate:
        groups, scores, shares, anchored = self._ranked(step)
        scores = scores.masked_fill(groups.sizes == 0, -torch.inf)
        return Estimate(scores, shares * groups.sizes, anchored, groups.summed)
