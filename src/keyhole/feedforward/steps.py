"""Thresholds at work in the decode steps of one cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from keyhole.core.autograd import outside_inference_mode
from keyhole.feedforward.fit import Rule


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

    @outside_inference_mode()
    def threshold(self, name: str, device: torch.device) -> Tensor:
        """The threshold of a module or an expert; nothing is below that of experts without one."""
        if (name, device) not in self._held:
            self._held[name, device] = self.thresholds.get(name, torch.zeros(1)).to(device)
        return self._held[name, device]

    @cached_property
    def _held(self) -> dict[tuple[str, torch.device], Tensor]:
        """Thresholds where they are used, copied once: a step that copies from the host waits for it."""
        return {}

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
    """The decode steps of one cache by a `FeedForward`, counted on the devices that take them."""

    feedforward: FeedForward
    _counts: dict[torch.device, Tensor] = field(default_factory=dict)  # float64 [2]: dense, skipped

    @property
    def activated(self) -> Activated:
        """What was read so far. This waits for the steps; they wait for nothing."""
        return sum((Activated(*counts.tolist()) for counts in self._counts.values()), Activated())

    @property
    def first(self) -> str:
        """The factor of feed-forwards that is computed first."""
        return self.feedforward.rule.first

    def covers(self, name: str) -> bool:
        """Whether a module has a threshold."""
        return self.feedforward.covers(name)

    def threshold(self, name: str, device: torch.device) -> Tensor:
        """The threshold of a module or an expert; nothing is below that of experts without one."""
        return self.feedforward.threshold(name, device)

    def begin(self, weights: int, device: torch.device) -> None:
        """Count a step that reads so many weights if it is dense."""
        self._count(device)[0].add_(weights)

    def record(self, kept: Tensor, weights: float) -> None:
        """Count a module's channels, `kept` bool `[B, F]`, of so many weights each."""
        skipped = (kept.numel() - kept.sum(dtype=torch.float64)) * (weights / len(kept))
        self._count(kept.device)[1].add_(skipped)

    @outside_inference_mode()
    def _count(self, device: torch.device) -> Tensor:
        if device not in self._counts:
            self._counts[device] = torch.zeros(2, dtype=torch.float64, device=device)
        return self._counts[device]
