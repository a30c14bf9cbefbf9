"""Eviction methods: keep a subset of the tokens and read all of it."""

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
_SLOPE = 20  # PyramidKV: the last layer keeps a twentieth of the average
_FLOOR = 0.2  # Ada-KV: fraction of an equal share that every head keeps (the alpha safeguard)


@dataclass(frozen=True)
class EvictionMethod(Method):
    """A method that evicts tokens: what is dropped cannot be read again."""

    budget: Budget = options.budget(
        Budget(fraction=0.2),
        mass=False,
        refusal="cannot be guaranteed by a method that drops tokens",
        unit="tokens",
        help="Tokens kept per head, including sinks and window: a number, or a fraction of the context.",
    )
    sinks: int = options.integer(4, ge=0, unit="tokens", help="First tokens of the sequence, always kept.")
    window: int = options.integer(32, ge=1, unit="tokens", help="Newest tokens, always kept.")
    every: int = options.integer(
        0,
        ge=0,
        unit="tokens",
        help="Evict again after this many generated tokens; 0 keeps all generated tokens.",
    )
    prompt: str = options.choice(
        "pieces",
        PROMPTS,
        help='When to evict during a prompt: after each of its "pieces" (chunks), which bounds memory to '
        'the budget plus one piece, or once the "whole" prompt is there, with scores computed over all of '
        "it.",
    )
    layers: str = options.choice(
        "uniform",
        LAYERS,
        help='Budget per layer: "uniform", or a "pyramid" in which lower layers keep more, with the same '
        "total.",
    )
    heads: str = options.choice(
        "uniform",
        HEADS,
        help='Budget per head: "uniform", or "adaptive", where a layer\'s heads share its budget by '
        "their scores.",
    )

    def retention(self, info: ModelInfo) -> list[Retention]:
        return [
            Retention(self.scorer(info, place), self.picker(), self.policy(share))
            for place, share in zip(info.layers, self.shares(len(info)), strict=True)
        ]

    @abstractmethod
    def scorer(self, info: ModelInfo, place: int) -> Scorer:
        """The importance scores of the tokens of model layer `place`."""

    def picker(self) -> Allocator:
        """How tokens are picked by their scores."""
        return BestOfLayer(_FLOOR) if self.heads == "adaptive" else BestTokens()

    def policy(self, share: LayerShare) -> EvictionPolicy:
        """What a layer with this share of the budget keeps."""
        whole = self.prompt == "whole"
        return EvictionPolicy(self.budget, share, self.sinks, self.window, self.every, whole)

    def shares(self, layers: int) -> list[LayerShare]:
        """The share of the budget for each layer."""
        if self.layers == "uniform" or layers < 2:
            return [Equal() for _ in range(layers)]
        return [Pyramid(layer / (layers - 1), 1 / _SLOPE) for layer in range(layers)]

    @property
    def ragged(self) -> bool:
        """Whether heads keep different numbers of tokens."""
        return self.heads == "adaptive"
