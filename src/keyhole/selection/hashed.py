"""Tokens sampled by locality-sensitive hashing, and weighted for how probable that was (MagicPIG).

Source: "MagicPIG: LSH Sampling for Efficient LLM Generation", arXiv 2410.16179.

Legend: B batch, Hkv KV heads, G query heads of each, N tokens, T tokens that follow, S slots, D head size,
L tables, K bits of each.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from keyhole.attention import Logits, Part
from keyhole.core.layout import Regions, packed_slots
from keyhole.core.scales import scales_of
from keyhole.kernels.pq.tables import softcapped
from keyhole.selection.base import Selection, Selector, Step
from keyhole.selection.picking.pages import ranked
from keyhole.selection.picking.rank import competing
from keyhole.storage import GrowingBuffer, Storage

_CHUNK = 1024  # tokens hashed at a time, to bound temporary memory
_COLLISIONS = 2  # that a token is sampled for
_FLOOR = 1e-4  # added to probabilities, so that no token of hardly any weighs like all others
_SEED = 0


class _Asked(NamedTuple):
    """How the latest step sampled.

    Attributes:
        query: float32 `[B, Hkv, D]`, of length one.
        tables: int64 `[B, Hkv]`, how many were looked at.
        whole: bool `[B, Hkv]`, where everything is read.
    """

    query: Tensor
    tables: Tensor
    whole: Tensor


class HashSelector(Selector):
    """Samples the tokens whose keys share at least two buckets with the query, table after table.

    Keys are hashed as they lie about their mean, which softmax does not see. The query heads of a group
    sample by one query, the mean of their directions; the estimate is unbiased for each of them. A step looks
    at as many tables as fill its budget; of the last one, the lower slots are read. What is read counts once
    by exact attention, and `rest` is what is missing of the weight 1/p.
    """

    def __init__(self, bits: int, tables: int) -> None:
        self.bits, self.tables = bits, tables
        self._codes = GrowingBuffer()  # int16 `[B, Hkv, N, L]`
        self._mean: Tensor | None = None  # float32 `[B, Hkv, D]`
        self._asked: _Asked | None = None

    def build(self, keys: Tensor, regions: Regions) -> None:
        means = [own[:, begin:].float() for own, begin in zip(keys, regions.first.tolist(), strict=True)]
        self._mean = torch.stack([part.sum(1) / max(part.shape[1], 1) for part in means])
        self._codes, self.length = GrowingBuffer(), 0
        self.append(keys)

    def append(self, keys: Tensor) -> None:
        for part in keys.split(_CHUNK, dim=2):
            self._codes.append(self._hashed(part.float() - self._centre().unsqueeze(2)))
            self.length += part.shape[2]

    def _hashed(self, points: Tensor) -> Tensor:
        """Buckets, int16 `[B, Hkv, T, L]`, of `points [B, Hkv, T, D]`."""
        planes = _planes(points.shape[-1], self.bits * self.tables, points.device)
        sides = (_directions(points) @ planes > 0).unflatten(-1, (-1, self.bits))
        powers = 2 ** torch.arange(self.bits, device=points.device)
        return (sides * powers).sum(-1).to(torch.int16)

    def select(self, step: Step) -> Selection:
        query = _directions(step.query.unflatten(1, (self._centre().shape[1], -1)).float())
        query = F.normalize(query.mean(2), dim=-1)
        codes = self._codes.view()[:, :, : step.regions.last]
        buckets = self._hashed(query.unsqueeze(2))
        found = torch.cat([_second(part == buckets) for part in codes.split(_CHUNK, dim=2)], dim=-1)
        competes, most = competing(step.regions, codes.shape[2]), step.limits_on_device().view(-1, 1)
        found = found.masked_fill(~competes, self.tables)
        whole = (
            competes.expand_as(found).sum(-1) <= most
        )  # all may be read, so that nothing is left to chance
        taken = torch.where(whole.unsqueeze(-1), competes, _first(found, self.tables, step))
        last = found.masked_fill(~taken, -1).amax(-1)
        tables = torch.where(taken.sum(-1) < most, self.tables, last + 1)
        self._asked = _Asked(query, tables, whole)
        slots, counts = packed_slots(taken, min(max(step.limits()), step.regions.last))
        return Selection(slots, counts, self._held(step, slots, counts))

    def _held(self, step: Step, slots: Tensor, counts: Tensor) -> Tensor:
        """The estimated share of attention on what is read, float32 `[B, Hkv]`."""
        keys, _ = _rows(step.storage, slots)
        logits = _logits(step.query, keys, step.logits).masked_fill(_filling(slots, counts), -torch.inf)
        weighted = logits - self._log_probabilities(keys).unsqueeze(2)
        anchor = step.anchor_lse.view(logits.shape[:3])
        total = torch.logaddexp(weighted.logsumexp(-1), anchor)
        return (torch.logaddexp(logits.logsumexp(-1), anchor) - total).exp().mean(2).clamp(0, 1)

    def rest(self, step: Step, selection: Selection) -> Part:
        """What tokens that were read weigh more than once: 1/p - 1."""
        keys, values = _rows(step.storage, selection.slots)
        more = torch.expm1(-self._log_probabilities(keys)).clamp(min=0).log()
        logits = _logits(step.query, keys, step.logits) + more.unsqueeze(2)
        logits = logits.masked_fill(_filling(selection.slots, selection.counts), -torch.inf)
        lse = logits.logsumexp(-1)
        weights = (logits - lse.masked_fill(lse == -torch.inf, 0.0).unsqueeze(-1)).exp()
        return Part((weights @ values).flatten(1, 2).to(step.query.dtype), lse.flatten(1, 2))

    def _log_probabilities(self, keys: Tensor) -> Tensor:
        """Of being found twice or more in the tables looked at, float32 `[B, Hkv, S]`."""
        if self._asked is None:
            raise ValueError("nothing was sampled yet; call select first")
        query, tables, whole = self._asked
        points = _directions(keys - self._centre().unsqueeze(2))
        cosine = (points @ query.unsqueeze(-1)).squeeze(-1).clamp(-1, 1)
        once = (1 - cosine.double().arccos() / math.pi) ** self.bits
        count = tables.unsqueeze(-1).double()
        missed = (1 - once) ** count + count * once * (1 - once) ** (count - 1).clamp(min=0)
        return (1 - missed + _FLOOR).clamp(max=1).log().float().masked_fill(whole.unsqueeze(-1), 0.0)

    def bytes_read(self, step: Step) -> int:
        return step.regions.last * self._codes.view()[0, 0, 0].nbytes + self._centre()[0, 0].nbytes

    def crop(self, length: int) -> None:
        super().crop(length)
        self._codes.crop(length)

    def reorder(self, rows: Tensor) -> None:
        if self._mean is not None:
            self._codes.reorder(rows)
            self._mean = self._mean.index_select(0, rows.to(self._mean.device))

    def state(self) -> dict[str, Tensor]:
        return {"buckets": self._codes.view(), "mean": self._centre()} if self.length else {}

    def restore(self, state: dict[str, Tensor], length: int) -> None:
        super().restore(state, length)
        self._codes, self._mean = GrowingBuffer(), state.get("mean")
        if state:
            self._codes.append(state["buckets"])

    @property
    def nbytes(self) -> int:
        return self._codes.nbytes + (0 if self._mean is None else self._mean.nbytes)

    def _centre(self) -> Tensor:
        if self._mean is None:
            raise ValueError("nothing is hashed yet; call build first")
        return self._mean


@lru_cache(maxsize=4)
def _planes(size: int, count: int, device: torch.device) -> Tensor:
    """Normals of random planes, float32 `[D, L * K]`, the same in every process."""
    return torch.randn(size, count, generator=torch.Generator().manual_seed(_SEED)).to(device)


def _directions(points: Tensor) -> Tensor:
    """Points `[..., T, D]` of length one."""
    return F.normalize(points / scales_of(points)[..., None, None], dim=-1)


def _second(shared: Tensor) -> Tensor:
    """The table `[B, Hkv, T]` in which a token is found for the second time; L where it is not."""
    return (shared.cumsum(-1, dtype=torch.int16) < _COLLISIONS).sum(-1)


def _first(found: Tensor, tables: int, step: Step) -> Tensor:
    """Which tokens are read, bool `[B, Hkv, N]`: those found first, of equals the lower slots."""
    scores = (-found.float()).masked_fill(found == tables, -torch.inf)
    order = ranked(scores, max(1, min(max(step.limits()), step.regions.last)))
    wanted = (found < tables).sum(-1).minimum(step.limits_on_device().view(-1, 1))
    within = torch.arange(order.shape[-1], device=order.device) < wanted.unsqueeze(-1)
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, within)


def _rows(storage: Storage, slots: Tensor) -> tuple[Tensor, Tensor]:
    """Keys `[B, Hkv, S, D]` and values of slots, float32."""
    keys, values, places = storage.picked(slots)
    index = places.long().unsqueeze(-1)
    keys, values = (rows.gather(2, index.expand(-1, -1, -1, rows.shape[-1])) for rows in (keys, values))
    return keys.float(), values.float()


def _logits(query: Tensor, keys: Tensor, how: Logits) -> Tensor:
    """Float32 `[B, Hkv, G, S]`."""
    grouped = query.unflatten(1, (keys.shape[1], -1)).float()
    return softcapped(grouped @ keys.transpose(-1, -2) * how.scale, how.softcap)


def _filling(slots: Tensor, counts: Tensor) -> Tensor:
    """Slots without meaning, bool `[B, Hkv, 1, S]`."""
    return (torch.arange(slots.shape[-1], device=slots.device) >= counts.unsqueeze(-1)).unsqueeze(2)
