"""Kept tokens stand for those that are dropped: their values are fitted to the attention that all had.

Source: Zweiger et al., "Fast KV Compaction via Attention Matching", arXiv 2602.16284. Keys are a subset of
those there are; values are found by least squares, so that queries like those observed get what they got.

Legend: B batch, H query heads, Hkv KV heads, G = H / Hkv, Q queries held, R = G * Q, N slots, S slots that
are kept, D and E size of keys and of values.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from keyhole.core.rope import Rope
from keyhole.kernels.pq.tables import softcapped
from keyhole.retention.base import Allocator, Scorer, ScorerInput
from keyhole.retention.kept import Kept
from keyhole.retention.observations import Observations
from keyhole.retention.policy import EvictionPolicy
from keyhole.retention.ridge import ridge_change
from keyhole.retention.wrapped import WrappedScorer
from keyhole.storage import Chosen, Merging, NewValues, Storage

_OWN = "compaction."
_LOGITS = 1 << 24  # computed at a time


class Wanted(NamedTuple):
    """What observed queries get of all that is there.

    Attributes:
        asked: float32 `[B, Hkv, R, D]`, the queries as if of tokens to come; zero where they are padding.
        counted: bool `[B, 1, R, 1]`, those that are no padding.
        mass: float32 `[B, Hkv, N]`, the attention that each slot gets from all of them.
        out: float32 `[B, Hkv, R, E]`, their attention.
    """

    asked: Tensor
    counted: Tensor
    mass: Tensor
    out: Tensor


class CompactingScorer(WrappedScorer):
    """Keeps what `inner` does and tokens that stand for the rest, and fits the values of all of them.

    The share `rows` of the tokens that compete is given to those that `inner` leaves and that observed
    queries attend to most. Values between sinks and window are then fitted by ridge regression, so that the
    observed queries, moved to the positions to come, get the output that they get before tokens are dropped.
    Queries are forgotten then, so that they take no memory beside what is kept; later ones are observed anew.

    Args:
        rows: share of the tokens that compete.
        queries: newest queries held of each query head.
        future: positions after the newest token to which queries are moved.
        ridge: weight of what a value changes by, relative to the mean square of what kept tokens get.
    """

    def __init__(
        self, inner: Scorer, rope: Rope, *, rows: float, queries: int, future: int, ridge: float
    ) -> None:
        super().__init__(inner)
        self.rope, self.rows, self.future, self.ridge = rope, rows, future, ridge
        self.looks_back = None if inner.looks_back is None else max(inner.looks_back, queries)
        self._observed = Observations(queries)
        self._wanted: Wanted | None = None  # between the choice and the fit of one eviction

    def see(self, seen: ScorerInput) -> None:
        super().see(seen)
        self._observed.add(seen.query, seen.kept.seen, seen.logits)

    def worst(self, allocator: Allocator, storage: Storage, kept: Kept, begin: int, end: int) -> None:  # noqa: ARG002
        """Which token goes depends on two stages."""
        return

    def pick(
        self, allocator: Allocator, storage: Storage, kept: Kept, competing: Tensor, room: Tensor
    ) -> Tensor:
        summaries = (room * self.rows).long()
        if not len(self._observed) or not summaries.any():
            return self.inner.pick(allocator, storage, kept, competing, room)
        first = self.inner.pick(allocator, storage, kept, competing, room - summaries)
        self._wanted = self._find(storage, kept)
        return first | allocator.pick(self._wanted.mass, competing & ~first, summaries)

    def merge(self, storage: Storage, kept: Kept, chosen: Chosen, policy: EvictionPolicy) -> Merging | None:
        if not len(self._observed):
            return None
        wanted, self._wanted = self._wanted or self._find(storage, kept), None
        fitted = self._values(storage, kept, chosen, policy, wanted)
        self._observed.clear()
        return fitted

    def _find(self, storage: Storage, kept: Kept) -> Wanted:
        keys, values = storage.keys().float(), storage.values().float()
        padding = torch.tensor(kept.padding, device=keys.device).view(-1, 1)
        moved = self._observed.moved(self.rope, kept.seen, self.future)
        groups = moved.shape[1] // keys.shape[1]
        counted = (self._observed.places >= padding).repeat(1, groups)[:, None, :, None]
        asked = moved.unflatten(1, (-1, groups)).flatten(2, 3) * counted
        mass, out = torch.zeros(keys.shape[:3], device=keys.device), []
        for rows in _pieces(asked, keys.shape[2]):
            shares = self._shares(asked, keys, kept.valid(), rows) * counted[:, :, rows]
            mass += shares.sum(2)
            out.append(shares @ values)
        return Wanted(asked, counted, mass, torch.cat(out, 2))

    def _shares(self, asked: Tensor, keys: Tensor, valid: Tensor, rows: slice) -> Tensor:
        """The softmax of some queries over keys that are `valid [B, Hkv, N]`, float32 `[B, Hkv, rows, N]`."""
        logits = self._observed.logits
        products = softcapped(asked[:, :, rows] @ keys.mT * logits.scale, logits.softcap)
        products = products.masked_fill(~valid.unsqueeze(2), -torch.inf)
        lse = products.logsumexp(-1, keepdim=True)
        if logits.sink_logits is not None:
            sinks = logits.sink_logits.float().view(keys.shape[1], -1, 1)
            sinks = sinks.expand(-1, -1, asked.shape[2] // sinks.shape[1]).flatten(1)[:, rows, None]
            lse = torch.logaddexp(lse, sinks)
        # A row of padding only has nothing to attend to.
        return (products - lse.clamp(min=torch.finfo().min)).exp()

    def _values(
        self, storage: Storage, kept: Kept, chosen: Chosen, policy: EvictionPolicy, wanted: Wanted
    ) -> NewValues:
        """The values of the tokens that are kept between sinks and window, fitted."""
        slots, valid = chosen.slots.long(), chosen.valid_mask()
        first, end = (kept.filling + policy.sinks).unsqueeze(-1), kept.slots - policy.window
        loses = (kept.valid().sum(-1) > chosen.counts).unsqueeze(-1)
        free = valid & loses & (slots >= first) & (slots < end)
        values = storage.values().float()
        keys, held = (_at(rows, slots) for rows in (storage.keys().float(), values))
        whole = slice(None)
        for row in range(len(keys)):
            one = slice(row, row + 1)
            shares = self._shares(wanted.asked[one], keys[one], valid[one], whole) * wanted.counted[one]
            missing = wanted.out[one] - shares @ held[one]
            held[one] += ridge_change(shares * free[one].unsqueeze(2), missing, self.ridge, free[one].sum(-1))
        takes = torch.zeros(values.shape[:3], dtype=torch.int, device=values.device)
        takes.scatter_add_(2, slots, free.int())
        spread = slots.masked_fill(~free, 0).unsqueeze(-1).expand(held.shape)
        fitted = torch.zeros_like(values).scatter_add_(2, spread, held * free.unsqueeze(-1))
        return NewValues(fitted, takes > 0)

    def keep(self, kept: Chosen) -> None:
        super().keep(kept)
        self._wanted = None

    def clear(self) -> None:
        super().clear()
        self._observed.clear()
        self._wanted = None

    def crop(self, tokens: int) -> None:
        super().crop(tokens)
        self._observed.crop(tokens)

    def reorder(self, rows: Tensor) -> None:
        super().reorder(rows)
        self._observed.reorder(rows)

    def state(self) -> dict[str, Tensor]:
        own = {_OWN + name: tensor for name, tensor in self._observed.state().items()}
        return super().state() | own

    def restore(self, state: dict[str, Tensor]) -> None:
        super().restore(state)
        own = {name.removeprefix(_OWN): held for name, held in state.items() if name.startswith(_OWN)}
        self._observed.restore(own)

    @property
    def nbytes(self) -> int:
        return super().nbytes + self._observed.nbytes


def _pieces(asked: Tensor, tokens: int) -> list[slice]:
    """Runs of queries `[B, Hkv, R, D]` whose logits against so many tokens are few enough."""
    queries = asked.shape[2]
    step = max(1, _LOGITS // max(1, asked.shape[:2].numel() * tokens))
    return [slice(begin, min(begin + step, queries)) for begin in range(0, queries, step)]


def _at(rows: Tensor, slots: Tensor) -> Tensor:
    """Rows `[B, Hkv, N, W]` at `slots [B, Hkv, S]`, `[B, Hkv, S, W]`."""
    return rows.gather(2, slots.unsqueeze(-1).expand(-1, -1, -1, rows.shape[3]))
