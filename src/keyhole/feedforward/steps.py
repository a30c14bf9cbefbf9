"""Thresholds at work in the decode steps of one cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from keyhole.feedforward.fit import Rule

_DENSE = torch.zeros(1)


@dataclass(frozen=True, eq=False)
class FeedForward:
    """Thresholds `[F]` or `[1]` by the names of a model's modules, experts among them, made by one rule.

    Modules without one are dense.
    """

    rule: Rule
    thresholds: Mapping[str, Tensor]

    def covers(self, name: str) -> bool:
        """Whether a module, or one of its experts, has a threshold."""
        return name in self._modules

    @cached_property
    def _modules(self) -> frozenset[str]:
        experts = (name.rpartition(".") for name in self.thresholds)
        return frozenset(self.thresholds) | {module for module, _, last in experts if last.isdecimal()}


@dataclass
class Activated:
    """Weights of decode steps, for each token: all that a dense step reads, and those that were skipped."""

    dense: float = 0.0
    skipped: float = 0.0

    @property
    def share(self) -> float:
        """What was read of them; 1 before the first step."""
        return 1 - self.skipped / self.dense if self.dense else 1.0

    def __add__(self, other: Activated) -> Activated:
        return Activated(self.dense + other.dense, self.skipped + other.skipped)


@dataclass
class Steps:
    """The decode steps of one cache by a `FeedForward`, counted."""

    feedforward: FeedForward
    activated: Activated = field(default_factory=Activated)

    @property
    def first(self) -> str:
        """The factor of feed-forwards that is computed first."""
        return self.feedforward.rule.first

    def covers(self, name: str) -> bool:
        """Whether a module has a threshold."""
        return self.feedforward.covers(name)

    def threshold(self, name: str, device: torch.device) -> Tensor:
        """The threshold of a module or an expert; nothing is below that of experts without one."""
        return self.feedforward.thresholds.get(name, _DENSE).to(device)

    def record(self, kept: Tensor, weights: float) -> None:
        """Count a module's channels, `kept` bool `[B, F]`, of so many weights each."""
        self.activated.skipped += weights * (kept.numel() - int(kept.count_nonzero())) / len(kept)
