"""How far a step's output is from dense attention's, measured beside decoding.

Legend: B batch, H query heads, Hkv KV heads, G = H / Hkv, N cached tokens, D head size, E size of values.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from keyhole.attention import add_sink_logits
from keyhole.cache.base import Observation

_ROUNDING = 1e-4  # of the output, by float32


@dataclass
class ErrorTally:
    """Sums over cases: one layer, query head and step each. A layer that read everything has no error.

    Attributes:
        target: what a case must not exceed to count as `kept`.
        cases: layers times steps; `error` and `kept` sum the means over the query heads of each.
    """

    target: float | None = None
    cases: int = 0
    error: float = 0.0
    kept: float = 0.0

    def add(self, errors: Tensor) -> None:
        """Count a layer's step by its `errors [B, H]`."""
        self.cases += 1
        self.error += float(errors.mean())
        if self.target is not None:
            self.kept += float((errors <= self.target + _ROUNDING).float().mean())

    def add_whole(self, cases: int) -> None:
        """Count cases that read everything."""
        self.cases += cases
        self.kept += cases


def exact_error(seen: Observation) -> Tensor:
    """`||out - dense|| / ||dense||` of a step's output, float32 `[B, H]`; infinite where only dense is 0."""
    logits = seen.storage.scores(seen.query, seen.logits)  # [B, Hkv, G, N]
    weights = logits.masked_fill(_unseen(seen, logits.shape[-1]), -torch.inf).double()
    whole = weights.logsumexp(-1)
    every = seen.logits.with_sinks(whole.flatten(1)).view_as(whole)
    dense = ((weights - every.unsqueeze(-1)).exp() @ seen.storage.values().double()).flatten(1, 2)
    out = add_sink_logits(seen.read.part, seen.logits).out.double()
    missed, length = (out - dense).norm(dim=-1), dense.norm(dim=-1)
    return torch.where(missed == 0, 0.0, missed / length).float()


def _unseen(seen: Observation, slots: int) -> Tensor:
    """Padding and tokens that a mask hides, bool `[B, 1, 1, N]`."""
    parts = seen.read.regions
    unseen = torch.arange(slots, device=parts.first.device) < parts.starts.view(-1, 1, 1, 1)
    return unseen if parts.hidden is None else unseen | parts.hidden.view(len(parts.hidden), 1, 1, -1)
