"""How far an index must read by its own estimate, so that a share of the attention mass is really read.

An index estimates: a mean key underestimates its group, a box does not say where its keys are, and units that
rank best are the overestimated ones. How far it is off depends on layer, head and text, so it is measured: a
few of the prompt's newest queries are answered both by the index and exactly. A step then reads up to the
estimated share at which most of them had read the share that is asked for (a conformal quantile).

Legend: B batch, H query heads, Hkv KV heads, G = H / Hkv, N slots, U units that are ranked (tokens, pages,
groups), Q queries shown, D head size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from keyhole.attention import key_logits
from keyhole.core.budget import Budget
from keyhole.selection.base import Selection, Step
from keyhole.selection.exact import key_bytes
from keyhole.selection.picking.rank import competing

_QUERIES = 32  # of those shown; with 16, whose greatest scatters more, reads are 3% more for a point
_TOLD = 32  # likewise, for what plain budgets hold
_FEWEST = 8  # fewer do not show what most would have needed
_QUANTILE = 0.93  # later queries are less alike, so that a mass is reached in 90% of cases


class Estimate(NamedTuple):
    """What an index says of one step.

    Attributes:
        scores: `[B, Hkv, U]`, by which units are read; the least where nothing competes.
        shares: float32 `[B, Hkv, U]`, of attention on the unit.
        anchored: float32 `[B, Hkv]`, on the always-read tokens.
        summed: sums values `[B, Hkv, N]` of slots by unit, to `[B, Hkv, U]`.
    """

    scores: Tensor
    shares: Tensor
    anchored: Tensor
    summed: Callable[[Tensor], Tensor]


Estimator = Callable[[Step], Estimate]


class Reach(NamedTuple):
    """How far to read.

    Attributes:
        share: float32 `[B, Hkv]`, the share by estimate that is to be reached.
        ratio: float32 `[B, Hkv]`, what is left unread there over what is left by estimate.
    """

    share: Tensor
    ratio: Tensor

    def held(self, estimated: Tensor) -> Tensor:
        """The share that a step holds whose estimate is `estimated [B, Hkv]`."""
        return (1 - (1 - estimated) * self.ratio).clamp(0, 1)


class Shown(NamedTuple):
    """The queries `[B, H, Q, D]` of the newest of so many tokens."""

    queries: Tensor
    tokens: int

    @property
    def begin(self) -> int:
        """Tokens before the first of the queries."""
        return self.tokens - self.queries.shape[2]

    def before(self, tokens: int) -> Shown:
        """Those of the first so many tokens: pieces of a prompt are shown with queries of pieces before."""
        newer = max(self.tokens - tokens, 0)
        return Shown(self.queries[:, :, : max(self.queries.shape[2] - newer, 0)], self.tokens - newer)


class MassControl:
    """What one index has learnt of its errors, for the target it was last asked for.

    Where too few queries of a prompt were shown, the query of each step is first answered exactly: nothing is
    saved then, and what is asked for is held.
    """

    def __init__(self) -> None:
        self.shown: list[Shown] = []  # newest first
        self._target: float | None = None  # the mass that the next is for
        self._learnt: Reach | None = None  # NaN in rows that no query could tell about
        self._whole = False  # whether there are no such rows
        self._scanned = False  # whether the latest step scored all keys
        self._plain = 0.0  # the budget without a mass that `_ratio` is for, see `_number`
        self._ratio: Tensor | None = None  # float32 `[B, Hkv]`, of odds, see `_ratio`
        self.captured = False  # steps are of fixed size, so that nothing can be learnt

    def see(self, queries: Tensor, tokens: int) -> None:
        """Take note of the newest `queries [B, H, Q, D]` of `tokens`; what was learnt before is forgotten."""
        shown = [Shown(queries, tokens)]
        for older in self.shown:
            left = older.before(shown[-1].begin)
            if left.queries.shape[2] and _count(shown) < _QUERIES:
                shown.append(left)
        self.shown = shown
        self._take(None, None)
        self._ratio = None

    def reach(self, step: Step, estimate: Estimator) -> Reach | None:
        """How far to read for the step's budget; None where that is not by mass, or is everything."""
        mass, self._scanned = step.budget.mass, False
        if mass is None or mass == 1:
            return None
        if self._target != mass:
            enough = _count(self.shown) >= _FEWEST
            self._take(mass, _learnt(self.shown, mass, step, estimate) if enough else None)
        if self._learnt is not None and self._whole:
            return self._learnt
        self._scanned = True
        own = _learnt([Shown(step.query.unsqueeze(2), step.regions.length)], mass, step, estimate)
        known = own if self._learnt is None else Reach(*map(_filled, self._learnt, own))
        return Reach(*(part.nan_to_num(nan=1.0) for part in known))

    def told(self, picked: Selection, step: Step, estimate: Estimator) -> Selection:
        """What a budget without a mass picked, with the mass that it holds in truth, as far as is known."""
        number = _number(step.budget)
        if self._ratio is None or self._plain != number:
            if self.captured or _count(self.shown) < _FEWEST:
                return picked
            self._plain, self._ratio = number, _ratio(self.shown, step, estimate)
        left = (1 - picked.mass).clamp(min=0) * self._ratio
        return picked._replace(mass=picked.mass / (picked.mass + left).clamp(min=1e-9))

    def bytes_read(self, step: Step) -> int:
        """Of the keys that the latest step scored to know how far to read, for one KV head of a batch row."""
        if not self._scanned:
            return 0
        return step.regions.last * key_bytes(step.storage)

    def crop(self, length: int) -> None:
        """Forget queries of tokens from `length` on."""
        self.shown = [shown for shown in self.shown if shown.tokens <= length]

    def reorder(self, rows: Tensor) -> None:
        """Take the batch rows `rows`, in that order."""
        self.shown = [Shown(_rows(shown.queries, rows), shown.tokens) for shown in self.shown]
        self._ratio = None if self._ratio is None else _rows(self._ratio, rows)
        if self._learnt is not None:
            self._take(self._target, Reach(*(_rows(part, rows) for part in self._learnt)))

    def state(self) -> dict[str, Tensor]:
        """What was learnt, if anything was: share, ratio and target, `[B, Hkv, 3]`; ratio and budget."""
        held = {}
        if self._ratio is not None:
            held["told"] = torch.stack([self._ratio, torch.full_like(self._ratio, self._plain)], -1)
        if self._learnt is None or self._target is None:
            return held
        target = torch.full_like(self._learnt.share, self._target)
        return held | {"calibration": torch.stack([*self._learnt, target], -1)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over a `state`."""
        self.shown, learnt, told = [], state.get("calibration"), state.get("told")
        self._ratio = None if told is None else told[..., 0]
        self._plain = 0.0 if told is None else round(float(told[0, 0, 1]), 6)
        if learnt is None:
            self._take(None, None)
        else:
            # A target is kept in float32, and given with few digits.
            self._take(round(float(learnt[0, 0, 2]), 6), Reach(learnt[..., 0], learnt[..., 1]))

    @property
    def nbytes(self) -> int:
        """Bytes of what was learnt."""
        return sum(part.nbytes for part in (*(self._learnt or ()), self._ratio) if part is not None)

    def _take(self, target: float | None, learnt: Reach | None) -> None:
        self._target, self._learnt = target, learnt
        # Looked at once, so that steps need not wait for a device.
        self._whole = learnt is not None and not bool(learnt.share.isnan().any())


class _Course(NamedTuple):
    """Shares and tokens `[B, Hkv, U + 1]` read before the first unit and after each, in order of reading."""

    estimated: Tensor
    true: Tensor
    tokens: Tensor

    def reached(self, target: float) -> Tensor:
        """The estimated share `[B, Hkv]` where the true one reaches a target."""
        return _where(self.true, torch.full_like(self.true[..., 0], target), self.estimated)

    def unread(self, share: Tensor) -> tuple[Tensor, Tensor]:
        """By estimate and in truth, what is unread where the estimated share reaches `share [B, Hkv]`."""
        estimated, true = (1 - _where(self.estimated, share, shares) for shares in self[:2])
        return estimated, true


def _where(reached: Tensor, least: Tensor, shares: Tensor) -> Tensor:
    """The first of `shares [..., U + 1]` at which those of `reached` are at least `least`, else the last."""
    place = (reached < least.unsqueeze(-1)).sum(-1, keepdim=True).clamp(max=reached.shape[-1] - 1)
    return shares.gather(-1, place).squeeze(-1)


def _learnt(shown: list[Shown], mass: float, step: Step, estimate: Estimator) -> Reach:
    """How far to read for a mass; NaN in rows that no query shown had anything to select in."""
    keys, courses, useful = step.storage.keys(), [], []
    for query, tokens in _asked(shown, _QUERIES):
        past = _at_time(step, query, tokens)
        if past.regions.last > 0:
            courses.append(_course(past, keys[:, :, :tokens], estimate))
            useful.append(past.regions.stop > past.regions.first)
    if not courses:
        unknown = torch.full(keys.shape[:2], torch.nan, device=keys.device)
        return Reach(unknown, unknown)
    known = torch.stack(useful).unsqueeze(-1)  # [Q, B, 1]
    needed = torch.stack([course.reached(mass) for course in courses]).masked_fill(~known, torch.nan)
    share = _most(needed).clamp(max=1)
    unread = zip(*(course.unread(share) for course in courses), strict=True)
    estimated, true = (torch.stack(part).masked_fill(~known, 0.0).sum(0) for part in unread)
    return Reach(share, torch.where(share.isnan(), share, true / estimated.clamp(min=1e-9)))


def _ratio(shown: list[Shown], step: Step, estimate: Estimator) -> Tensor:
    """The odds in truth that mass is left unread over those by estimate, `[B, Hkv]`; 1 where none is."""
    keys, limits = step.storage.keys(), step.limits_on_device().view(-1, 1, 1)
    estimated, true, queries = *torch.zeros(2, *keys.shape[:2], device=keys.device), 0
    for query, tokens in _asked(shown, _TOLD):
        past = _at_time(step, query, tokens)
        if past.regions.last > 0:
            course = _course(past, keys[:, :, :tokens], estimate)
            whole = (course.tokens <= limits).sum(-1, keepdim=True) - 1
            left = (1 - shares.gather(-1, whole).squeeze(-1) for shares in (course.estimated, course.true))
            estimated, true, queries = *map(torch.add, (estimated, true), left), queries + 1
    estimated, true = (left / (queries - left).clamp(min=1e-6) for left in (estimated, true))
    return torch.where(estimated > 0, true / estimated.clamp(min=1e-9), 1.0)


def _asked(shown: list[Shown], most: int) -> list[tuple[Tensor, int]]:
    """About so many of the queries `[B, H, D]`, newest first, and the tokens there were at each."""
    queries = [
        (one.queries[:, :, -1 - at], one.tokens - at) for one in shown for at in range(one.queries.shape[2])
    ]
    return queries[:: max(1, len(queries) // most)]


def _number(budget: Budget) -> float:
    """Tokens, or less than 0 for a share of the context; with few digits, as in a state."""
    return float(budget.tokens or 0) - round(budget.fraction or 0.0, 6)


def _most(needed: Tensor) -> Tensor:
    """What suffices for a share `_QUANTILE` of queries to come, of what those shown `needed [Q, B, Hkv]`.

    A later query needs more than the greatest of n in one case of n + 1, so ranks are counted among these.
    """
    ordered = needed.nan_to_num(nan=torch.inf).sort(0).values
    known = (~needed.isnan()).sum(0)
    place = (_QUANTILE * (known + 1) - 1).clamp(min=0).minimum((known - 1).clamp(min=0).float())
    below = place.floor().long()
    above = (below + 1).minimum((known - 1).clamp(min=0))
    low, high = (ordered.gather(0, at.unsqueeze(0)).squeeze(0) for at in (below, above))
    return torch.where(known > 0, low.lerp(high, place - below), torch.nan)


def _at_time(step: Step, query: Tensor, tokens: int) -> Step:
    """The step of `query [B, H, D]` when there were so many tokens; its anchors are another's."""
    now = step.regions
    since = now.length - tokens
    stop = (now.stop - since).clamp(min=0)
    past = replace(
        now, length=tokens, last=max(now.last - since, 0), stop=stop, first=now.first.minimum(stop)
    )
    return step._replace(query=query, regions=past)


def _course(step: Step, keys: Tensor, estimate: Estimator) -> _Course:
    parts = step.regions
    logits = key_logits(step.query, keys, step.logits)
    slots = torch.arange(logits.shape[-1], device=logits.device)
    logits = logits.masked_fill(slots < parts.starts.view(-1, 1, 1, 1), -torch.inf)
    competes = competing(parts, len(slots))
    always = logits.masked_fill(competes.unsqueeze(2), -torch.inf)
    every, anchor = (step.logits.with_sinks(part.logsumexp(-1).flatten(1)) for part in (logits, always))
    whole = every.view(logits.shape[:3])
    shares = (logits - whole.unsqueeze(-1)).exp().mean(2).masked_fill(~competes, 0.0)
    anchored = (anchor.view_as(whole) - whole).exp().mean(2)
    found = estimate(step._replace(anchor_lse=anchor))
    order = found.scores.argsort(dim=-1, descending=True, stable=True)
    true = found.summed(shares[..., : parts.last])
    sizes = found.summed(competes[..., : parts.last].expand_as(shares[..., : parts.last]).float())
    return _Course(
        _cumulative(found.anchored, found.shares.gather(-1, order)),
        _cumulative(anchored, true.gather(-1, order)),
        _cumulative(torch.zeros_like(anchored), sizes.gather(-1, order)),
    )


def _cumulative(begun: Tensor, shares: Tensor) -> Tensor:
    return torch.cat([begun.unsqueeze(-1), shares], -1).cumsum(-1)


def _count(shown: list[Shown]) -> int:
    return sum(one.queries.shape[2] for one in shown)


def _filled(learnt: Tensor, other: Tensor) -> Tensor:
    return torch.where(learnt.isnan(), other, learnt)


def _rows(tensor: Tensor, rows: Tensor) -> Tensor:
    return tensor.index_select(0, rows.to(tensor.device))
