"""Thresholds from what activations usually are: importance of channels, and how it is distributed.

Source: arXiv 2409.01366. A channel's part in the output is the product of two factors, one of which is
computed first. Of the other one only the usual magnitude is known when channels are chosen, so a channel's
importance is the first factor times that mean. All channels of a module share one quantile of importance:
those that usually matter little are dropped most of the time.

Legend: T tokens, F channels of a feed-forward, N numbers of an input.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from keyhole.feedforward.histogram import Histogram

FIRST = ("gate", "up")
WEIGHTINGS = ("mean", "norm", "none")
GRID = 1000  # steps of sparsity that quantiles are held for


class Rule(NamedTuple):
    """How channels are chosen.

    Attributes:
        first: the factor that is computed for all channels, "gate" or "up"; the other one only where needed.
        weighting: what stands for the rest of a channel's part: the "mean" magnitude of the other factor;
            that times the "norm" of the channel's row of the output projection; or "none", the same for all
            channels (CATS, arXiv 2404.08763).
    """

    first: str = "gate"
    weighting: str = "mean"


class Fitted(NamedTuple):
    """What is known of one module.

    Attributes:
        weights: float32 `[F]`, what a channel's magnitude is multiplied with for its importance; `[1]` where
            that is the same for all.
        quantiles: float32 `[GRID + 1]` of importance, at shares from 0 to 1.
    """

    weights: Tensor
    quantiles: Tensor

    def threshold(self, sparsity: float) -> Tensor:
        """The magnitude below which a channel is dropped, `[F]` or `[1]`; infinite for a weight of 0."""
        place = sparsity * GRID
        low = int(place)
        high = min(low + 1, GRID)
        cut = torch.lerp(self.quantiles[low], self.quantiles[high], place - low)
        # Divided, a weight near 0 gives infinity, and a weight of 0 would give NaN where the cut is 0.
        return torch.where(self.weights > 0, cut / self.weights, torch.inf)


class InputFit:
    """Collects the magnitudes of a projection's input."""

    def __init__(self) -> None:
        self._histogram = Histogram()
        self.tokens = 0

    def add(self, x: Tensor) -> None:
        """Take in inputs `[..., N]`."""
        self._histogram.add(x.abs())
        self.tokens += x.shape[:-1].numel()

    @property
    def fitted(self) -> Fitted:
        return Fitted(torch.ones(1), self._histogram.quantiles(_shares()))


class GatedFit:
    """Collects the factors of a gated feed-forward: the means of all tokens first, then their importance.

    Args:
        norms: `[F]`, of the rows of the output projection.
    """

    def __init__(self, rule: Rule, norms: Tensor) -> None:
        self._rule, self._norms = rule, norms.float().cpu()
        self._sum = torch.zeros(norms.shape[0], dtype=torch.float64)
        self.tokens = 0
        self._histogram = Histogram()

    def add_means(self, gate: Tensor, up: Tensor) -> None:
        """Take in the factors `[T, F]` of some tokens, `gate` after its activation function."""
        other = up if self._rule.first == "gate" else gate
        self._sum += other.abs().sum(0, dtype=torch.float64).cpu()
        self.tokens += other.shape[0]

    def add(self, gate: Tensor, up: Tensor) -> None:
        """Take in the same again, after the means of all of them are known."""
        first = gate if self._rule.first == "gate" else up
        self._histogram.add(first.float().abs() * self._weights.to(first.device))

    @property
    def fitted(self) -> Fitted:
        return Fitted(self._weights, self._histogram.quantiles(_shares()))

    @property
    def _weights(self) -> Tensor:
        if self._rule.weighting == "none":
            return torch.ones(1)
        means = (self._sum / max(1, self.tokens)).float()
        return means * self._norms if self._rule.weighting == "norm" else means


def _shares() -> Tensor:
    return torch.linspace(0, 1, GRID + 1, dtype=torch.float64)
