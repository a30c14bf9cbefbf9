"""How a budget is shared out to the layers of a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import ceil

_LAST = 14  # WindowKV's lambda


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


@dataclass(frozen=True)
class GroupPyramid(LayerShare):
    """Falls linearly from group to group of layers (WindowKV, arXiv 2503.17922), as its released code has it.

    Layers of the last group keep `size / 14` of the average, but no more than the average; the first ones
    what is needed for the sum over the layers to stay. As in `Pyramid`, no layer is asked for more than there
    is. Whole numbers are rounded down, so the mean of all layers is within a token of the average for each
    group.

    Attributes:
        group: place among the groups, from 0.
        groups: how many there are.
        size: layers of a group.
        depth: mean of `group / (groups - 1)` over all layers; less than half where the last group is short.
    """

    group: int
    groups: int
    size: int
    depth: float

    def of(self, average: int, context: int) -> int:
        if self.groups == 1:
            return average
        flat = ceil((average - context * (1 - self.depth)) / self.depth)
        last = min(max(average * self.size // _LAST, flat), average)
        first = round((average - last * self.depth) / (1 - self.depth))
        if self.group == self.groups - 1:
            return last
        return first - self.group * ((first - last) // (self.groups - 1))


def group_pyramid(layers: int, size: int) -> list[LayerShare]:
    """The parts of so many layers, in groups of `size` from the first on."""
    groups = -(-layers // size)
    depth = sum(layer // size for layer in range(layers)) / (layers * max(groups - 1, 1)) if layers else 0.0
    return [GroupPyramid(layer // size, groups, size, depth) for layer in range(layers)]
