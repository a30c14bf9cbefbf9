"""Methods that keep few tokens and read all of them."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from keyhole.core.budget import Budget
from keyhole.core.model_info import ModelInfo
from keyhole.methods import options
from keyhole.methods.base import Method
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
    """A method that drops tokens for good."""

    budget: Budget = options.budget(
        Budget(fraction=0.2),
        mass=False,
        refusal="cannot be kept to by dropping tokens",
        unit="tokens",
        help="Tokens kept for each head, sinks and window among them: a number, or a fraction of the "
        "context.",
    )
    sinks: int = options.integer(
        4, ge=0, unit="tokens", help="First tokens of the text that are always kept."
    )
    window: int = options.integer(32, ge=1, unit="tokens", help="Newest tokens that are always kept.")
    every: int = options.integer(
        0,
        ge=0,
        unit="tokens",
        help="Generated tokens after which tokens are dropped again; 0 keeps all that is generated.",
    )
    prompt: str = options.choice(
        "pieces",
        PROMPTS,
        help='Drop after each of the "pieces" in which a prompt comes, which bounds memory to the budget and '
        'one piece, or when the "whole" of it is there, by scores that know all of it.',
    )
    layers: str = options.choice(
        "uniform",
        LAYERS,
        help='"uniform", or a "pyramid" in which lower layers keep more, at the same sum (PyramidKV).',
    )
    heads: str = options.choice(
        "uniform",
        HEADS,
        help='"uniform", or "adaptive": a layer\'s heads share its budget by their scores (Ada-KV).',
    )

    def retention(self, info: ModelInfo) -> list[Retention]:
        return [
            Retention(self.scorer(info, place), self.picker(), self.policy(share))
            for place, share in zip(info.layers, self.shares(len(info)), strict=True)
        ]

    @abstractmethod
    def scorer(self, info: ModelInfo, place: int) -> Scorer:
        """How important the tokens of layer `place` of the model are."""

    def picker(self) -> Allocator:
        """How tokens are picked by their scores."""
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
