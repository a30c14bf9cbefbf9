"""What a selection missed: exact mass read and recall of the best tokens, measured beside decoding.

Legend: B batch, H query heads, Hkv KV heads, G = H / Hkv, N cached tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from keyhole.cache.base import Observation
from keyhole.cache.layer import LayerCache
from keyhole.evaluation.output_error import ErrorTally, exact_error
from keyhole.selection import Selection
from keyhole.selection.picking.rank import competing

_ROUNDING = 1e-5


@dataclass
class MassTally:
    """Sums over cases: one layer, KV head and step each. A layer that read everything has mass 1.

    Attributes:
        target: the share a case must reach to count as `reached`.
        cases: layers times steps; `mass`, `recall` and `reached` sum the means over the KV heads of each.
    """

    target: float | None = None
    cases: int = 0
    mass: float = 0.0
    recall: float = 0.0
    reached: float = 0.0

    def add(self, step: Exact) -> None:
        """Count a layer's step."""
        self.cases += 1
        self.mass += float(step.mass.mean())
        self.recall += float(step.recall.mean())
        if self.target is not None:
            self.reached += float((step.mass >= self.target - _ROUNDING).float().mean())

    def add_whole(self, cases: int) -> None:
        """Count cases that read everything."""
        self.cases += cases
        self.mass += cases
        self.recall += cases
        self.reached += cases


class MassMeter:
    """Watches the layers of one request. Measuring is left to `settle`, to keep it out of a timing.

    Args:
        target: of mass.
        error: the largest error that counts as kept, where the budget is one.
        errors: measure errors whatever the budget is.
    """

    def __init__(
        self,
        layers: Sequence[LayerCache],
        target: float | None = None,
        *,
        error: float | None = None,
        errors: bool = False,
    ) -> None:
        self.tally = MassTally(target)
        self.errors = ErrorTally(error) if errors or error is not None else None
        self._layers = layers
        self._pending: list[Observation] = []
        for layer in layers:
            layer.observe(self._pending.append)

    def settle(self) -> None:
        """Measure the step that was just taken."""
        whole = len(self._layers) - len(self._pending)
        self.tally.add_whole(whole)
        for observation in self._pending:
            self.tally.add(exact(observation))
        if self.errors is not None:
            self.errors.add_whole(whole)
            for observation in self._pending:
                self.errors.add(exact_error(observation))
        self._pending.clear()


class Exact(NamedTuple):
    """A step held against the softmax over all tokens, float32 `[B, Hkv]` each.

    Attributes:
        mass: the share that was read, a mean over a group's query heads.
        recall: the share of the selected tokens that are among the best so many by exact scores.
    """

    mass: Tensor
    recall: Tensor


def exact(seen: Observation) -> Exact:
    """Score every token exactly and compare."""
    parts, selection = seen.read.regions, seen.read.selection
    logits = seen.storage.scores(seen.query, seen.logits)  # [B, Hkv, G, N]
    slots = torch.arange(logits.shape[-1], device=logits.device)
    padding = torch.tensor(parts.padding, device=logits.device).view(-1, 1, 1, 1)
    logits = logits.masked_fill(slots < padding, -torch.inf)
    every = logits.logsumexp(-1)
    competes = competing(parts, logits.shape[-1])
    shares = (logits - every.unsqueeze(-1)).exp().mean(2).masked_fill(~competes, -1.0)
    return Exact(_mass(seen, every.flatten(1)), _recall(shares, selection))


def _mass(seen: Observation, every: Tensor) -> Tensor:
    # What sinks take is accounted for, as in what was estimated.
    read, every = (seen.logits.with_sinks(lse) for lse in (_read_lse(seen), every))
    return (read - every).exp().unflatten(1, (seen.read.selection.counts.shape[1], -1)).mean(-1)


def _read_lse(seen: Observation) -> Tensor:
    """The log-sum-exp `[B, H]` of what was read, without the estimate of the rest."""
    whole, rest = seen.read.part.lse, seen.read.rest
    if rest is None:
        return whole
    share = (rest.lse.double() - whole.double()).exp()
    return (whole + torch.log1p(-share)).to(whole.dtype)


def _recall(shares: Tensor, selection: Selection) -> Tensor:
    counts = selection.counts.long().unsqueeze(-1)
    last_of_best = shares.sort(-1, descending=True).values.gather(-1, (counts - 1).clamp(min=0))
    meant = torch.arange(selection.slots.shape[-1], device=shares.device) < counts
    found = (shares.gather(-1, selection.slots.long()) >= last_of_best) & meant
    return torch.where(counts == 0, 1.0, found.sum(-1, keepdim=True) / counts.clamp(min=1)).squeeze(-1)
