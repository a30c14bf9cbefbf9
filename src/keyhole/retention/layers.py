"""How a budget is shared out to the layers of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass


class LayerShare(ABC):
    """One layer's part of a budget."""

    @abstractmethod
    def of(self, average: int, context: int) -> int:
        """Tokens the layer keeps of a context, where layers keep `average` tokens in the mean."""


@dataclass(frozen=True)
class Equal(LayerShare):
    """All layers keep the same."""

    def of(self, average: int, context: int) -> int:  # noqa: ARG002
        return average


@dataclass(frozen=True)
class Pyramid(LayerShare):
    """Falls linearly from the first layer to the last (PyramidKV, arXiv 2406.02069).

    No layer is asked for more than there is: the slope is flatter where the budget is large, so that the sum
    over the layers stays.

    Attributes:
        depth: place among the layers, from 0 to 1.
        last: the last layer's multiple of the average.
    """

    depth: float
    last: float

    def of(self, average: int, context: int) -> int:
        last = min(max(self.last, 2 - context / average), 1.0)
        return round(average * (2 - last - 2 * (1 - last) * self.depth))
