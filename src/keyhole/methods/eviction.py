"""Methods that keep few tokens and read all of them."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.budget import Budget
from keyhole.core.errors import SpecError
from keyhole.core.model_info import ModelInfo
from keyhole.methods.base import Method, check_choice, check_range
from keyhole.retention import (
    Allocator,
    BestOfLayer,
    BestTokens,
    Equal,
    EvictionPolicy,
    LayerShare,
    Pyramid,
    Retention,
    Scorer,
)

LAYERS = ("uniform", "pyramid")
HEADS = ("uniform", "adaptive")
PROMPTS = ("pieces", "whole")
_SLOPE = 20  # PyramidKV: how much less than the average the last layer keeps
_FLOOR = 0.2  # Ada-KV: share of an equal part that each head has in any case


@dataclass(frozen=True)
class EvictionMethod(Method):
    """A method that drops tokens for good.

    Attributes:
        budget: tokens kept for each head, sinks and window among them: a number, or a share of the context.
        sinks: first tokens of the text that are always kept.
        window: newest tokens that are always kept.
        every: generated tokens after which tokens are dropped again; 0 keeps all that is generated.
        prompt: drop after each of the "pieces" in which a prompt comes, which bounds memory to the budget and
            one piece, or when the "whole" of it is there, by scores that know all of it.
        layers: "uniform", or a "pyramid" in which lower layers keep more, at the same sum (PyramidKV).
        heads: "uniform", or "adaptive": a layer's heads share its budget by their scores (Ada-KV).
    """

    least_window: ClassVar[int] = 1

    budget: Budget = Budget(fraction=0.2)  # noqa: RUF009 - immutable
    sinks: int = 4
    window: int = 32
    every: int = 0
    prompt: str = "pieces"
    layers: str = "uniform"
    heads: str = "uniform"

    def __post_init__(self) -> None:
        object.__setattr__(self, "budget", Budget.parse(self.budget))
        if self.budget.mass is not None:
            raise SpecError(
                f"{self.name}: {self.budget} cannot be kept to by dropping tokens; give tokens or a share"
            )
        check_range(self.name, "sinks", self.sinks, 0)
        check_range(self.name, "window", self.window, self.least_window)
        check_range(self.name, "every", self.every, 0)
        check_choice(self.name, "prompt", self.prompt, PROMPTS)
        check_choice(self.name, "layers", self.layers, LAYERS)
        check_choice(self.name, "heads", self.heads, HEADS)

    def retention(self, info: ModelInfo) -> list[Retention]:
        return [
            Retention(self.scorer(place), self.picker(), self.policy(share))
            for place, share in zip(info.layers, self.shares(len(info)), strict=True)
        ]

    @abstractmethod
    def scorer(self, place: int) -> Scorer:
        """What tokens of the layer at that place of the model are worth."""

    def picker(self) -> Allocator:
        """How tokens are picked by their worth."""
        return BestOfLayer(_FLOOR) if self.heads == "adaptive" else BestTokens()

    def policy(self, share: LayerShare) -> EvictionPolicy:
        """What a layer with that part of the budget keeps."""
        whole = self.prompt == "whole"
        return EvictionPolicy(self.budget, share, self.sinks, self.window, self.every, whole)

    def shares(self, layers: int) -> list[LayerShare]:
        """The parts of the budget, one for each layer."""
        if self.layers == "uniform" or layers < 2:
            return [Equal() for _ in range(layers)]
        return [Pyramid(layer / (layers - 1), 1 / _SLOPE) for layer in range(layers)]

    @property
    def ragged(self) -> bool:
        """Whether heads keep different numbers of tokens."""
        return self.heads == "adaptive"
