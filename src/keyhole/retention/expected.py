"""Attention that the queries to come are expected to pay (Expected Attention).

Source: Devoto et al., "Expected Attention: KV Cache Compression by Estimating Attention from Future Queries
Distribution", arXiv 2510.00636. Queries before rotation are taken as normally distributed. The logit of a key
is then normal as well, and the mean of its exponential is `exp(mean + variance / 2)`.

Legend: B batch, H query heads, Hkv KV heads, G = H / Hkv, T tokens, N slots, D size of a key, E hidden size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from keyhole.attention import Logits
from keyhole.core.model_info import Projections
from keyhole.core.needs import Needs
from keyhole.core.rope import Rope
from keyhole.retention.base import Scorer, ScorerInput
from keyhole.retention.kept import Kept
from keyhole.storage import Storage

_PIECE = 2048  # tokens computed at a time, to bound temporary memory
_POSITIONS = 64  # future positions averaged at a time


class QueryStatistics(NamedTuple):
    """How queries before rotation are distributed, of each batch row by itself; all float32.

    Attributes:
        count: `[B]`, queries that counted.
        mean: `[B, H, D]`.
        scatter: `[B, H, D, D]`, the sum of outer products of what deviates from the mean.
    """

    count: Tensor
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, queries: Tensor, counted: Tensor) -> QueryStatistics:
        """Of `queries [B, H, T, D]` where `counted [B, T]`."""
        weights = counted[:, None, :, None].float()
        count = counted.sum(-1).float()
        mean = (queries * weights).sum(2) / count.clamp(min=1).view(-1, 1, 1)
        deviations = (queries - mean.unsqueeze(2)) * weights
        return cls(count, mean, deviations.transpose(-1, -2) @ deviations)

    def joined(self, other: QueryStatistics) -> QueryStatistics:
        """Of both together."""
        count = self.count + other.count
        share = (other.count / count.clamp(min=1)).view(-1, 1, 1)
        apart = other.mean - self.mean
        weight = (self.count.view(-1, 1, 1) * share).unsqueeze(-1)
        between = weight * apart.unsqueeze(-1) * apart.unsqueeze(-2)
        return QueryStatistics(count, self.mean + share * apart, self.scatter + other.scatter + between)

    def reorder(self, rows: Tensor) -> QueryStatistics:
        """Of the batch rows `rows`."""
        return QueryStatistics(*(part[rows.to(part.device)] for part in self))


class ExpectedAttention(Scorer):
    """The softmax of expected exponentials of logits, a mean over a group's heads, times the value's norm.

    Tokens are scored as if for a query at each of the `future` positions after the newest token, by the mean
    rotation of these, as the authors do. Statistics are of all queries since the text began but those of the
    `sinks`, and stay when tokens are cropped. Soft-capping and sink logits are left out of the estimate.

    Args:
        covariance: count the variance of logits, too.
        epsilon: added to the expected attention before it is multiplied with norms.
        projections: make queries of the hidden states by these, as published; None takes the queries
            themselves, turned back, which are the same and serve models whose projections are not known.
    """

    is_attention = True

    def __init__(
        self,
        rope: Rope,
        *,
        future: int,
        sinks: int,
        covariance: bool = True,
        epsilon: float = 0.0,
        projections: Projections | None = None,
    ) -> None:
        self.rope, self.future, self.sinks = rope, future, sinks
        self.covariance, self.epsilon, self.projections = covariance, epsilon, projections
        self.needs = Needs.NOTHING if projections is None else Needs.HIDDEN_STATES
        self.clear()

    def clear(self) -> None:
        self._statistics: QueryStatistics | None = None
        self._logits = Logits(1.0)
        self._hidden: Tensor | None = None  # `[B, T, E]`, of tokens that are about to be seen

    def see_hidden_states(self, hidden: Tensor) -> None:
        self._hidden = hidden

    @torch.no_grad()
    def see(self, seen: ScorerInput) -> None:
        positions = _positions(seen)
        counted = positions >= self.sinks
        for part in torch.arange(seen.query.shape[2], device=positions.device).split(_PIECE):
            own = QueryStatistics.of(self._queries(seen, part, positions[:, part]), counted[:, part])
            self._statistics = own if self._statistics is None else self._statistics.joined(own)
        self._logits, self._hidden = seen.logits, None

    def _queries(self, seen: ScorerInput, part: Tensor, positions: Tensor) -> Tensor:
        """Those of some of the tokens before rotation, float32 `[B, H, T, D]`."""
        if self.projections is None:
            return self.rope.unrotate(seen.query[:, :, part], positions)
        if self._hidden is None or self._hidden.shape[1] != seen.query.shape[2]:
            raise ValueError(
                "the hidden states of this layer were not recorded; use the cache inside `with "
                "keyhole.attach(model)`, or give statistics=queries"
            )
        return self.projections.queries(self._hidden[:, part]).float()

    def scores(self, storage: Storage, kept: Kept) -> Tensor:
        if self._statistics is None:
            return kept.positions.float()
        keys, values = storage.keys(), storage.values()
        logits = self._expected(keys, kept).masked_fill(~kept.valid().unsqueeze(2), -torch.inf)
        return (logits.softmax(-1).mean(2) + self.epsilon) * values.float().norm(dim=-1)

    def _expected(self, keys: Tensor, kept: Kept) -> Tensor:
        """Logarithms of the mean exponentials of logits, float32 `[B, Hkv, G, N]`."""
        assert self._statistics is not None
        count, mean, scatter = self._statistics
        heads, scale = keys.shape[1], self._logits.scale
        rotation = self._rotation(keys, kept)
        mean = (mean.unsqueeze(2) @ rotation).squeeze(2) * scale
        spread = rotation.transpose(-1, -2) @ (scatter / count.clamp(min=1)[:, None, None, None]) @ rotation
        mean, spread = mean.unflatten(1, (heads, -1)), spread.unflatten(1, (heads, -1)) * scale**2
        parts = []
        for part in keys.float().split(_PIECE, dim=2):
            logits = mean @ part.transpose(-1, -2)
            if self.covariance:
                own = part.unsqueeze(2)
                logits = logits + ((own @ spread) * own).sum(-1) / 2
            parts.append(logits)
        return torch.cat(parts, dim=-1)

    def _rotation(self, keys: Tensor, kept: Kept) -> Tensor:
        """The mean rotation to the positions to come, `[B, 1, D, D]`, to be multiplied from the right."""
        size, device = keys.shape[-1], keys.device
        unit = torch.eye(size, device=device).view(1, size, 1, size)
        total = torch.zeros(1, size, 1, size, device=device)
        # Rotations add up, so what is ahead of the newest token is the same for all batch rows.
        for ahead in torch.arange(self.future, device=device).split(_POSITIONS):
            turned = self.rope.rotate(unit.expand(-1, -1, len(ahead), -1), ahead.view(1, -1))
            total += turned.sum(2, keepdim=True)
        next_one = torch.tensor(kept.context, device=device).view(-1, 1)
        mean = (total / self.future).expand(len(keys), -1, -1, -1)
        return self.rope.rotate(mean, next_one).transpose(1, 2)

    def reorder(self, rows: Tensor) -> None:
        if self._statistics is not None:
            self._statistics = self._statistics.reorder(rows)

    def state(self) -> dict[str, Tensor]:
        if self._statistics is None:
            return {}
        return {**self._statistics._asdict(), "scale": torch.tensor(self._logits.scale, dtype=torch.float64)}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.clear()
        if state:
            self._statistics = QueryStatistics(*(state[name] for name in QueryStatistics._fields))
            self._logits = Logits(float(state["scale"]))

    @property
    def nbytes(self) -> int:
        return 0 if self._statistics is None else sum(part.nbytes for part in self._statistics)


def _positions(seen: ScorerInput) -> Tensor:
    """Of the queries that are seen, int64 `[B, T]`; negative in padding."""
    kept, tokens = seen.kept, seen.query.shape[2]
    own = torch.arange(kept.seen - tokens, kept.seen, device=seen.query.device)
    return own - torch.tensor(kept.padding, device=own.device).view(-1, 1)
