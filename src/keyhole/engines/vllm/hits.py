"""What a prefix cache may hold for a method, and how much of a hit is used; imports nothing of vLLM."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from keyhole.cache.evicting import EvictingLayer
from keyhole.methods.recipe import Recipe, answers
from keyhole.prefill import DensePrefill
from keyhole.storage import DeviceStorage


class Hits(NamedTuple):
    """How far prefix-cache hits reach.

    Attributes:
        recomputed: newest tokens of a prompt that are computed whatever is cached, since the method looks at
            their queries; None is all of them, so that there are no hits.
        generated: whether generated tokens are cached: their keys and values are those that the same tokens
            have in a prompt.
    """

    recomputed: int | None
    generated: bool

    def longest(self, prompt: int) -> int:
        """Of a prompt of so many tokens, how many may come from the cache; one is always computed."""
        return 0 if self.recomputed is None else max(prompt - max(self.recomputed, 1), 0)


@lru_cache(maxsize=8)
def hits_of(recipe: Recipe, layers: int) -> Hits:
    """What a recipe's layers, of which a model has so many, look at."""
    made = recipe.layers(layers)
    backs = [layer.looks_back for layer in made]
    plain = all(
        layer.selector is None
        and not isinstance(layer, EvictingLayer)
        and type(layer.storage) is DeviceStorage
        and isinstance(layer.prefill, DensePrefill)
        for layer in made
    )
    activates = any(answers(stage, "feedforward") for stage in recipe.stages)
    known = [back for back in backs if back is not None]
    return Hits(None if None in backs else max(known, default=0), plain and not activates)
