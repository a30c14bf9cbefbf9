"""A prompt in the caches of many methods: computed densely once where they only read it differently."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from keyhole.engines.transformers import make_cache, served_layers
from keyhole.engines.transformers.cache import KeyholeLayer
from keyhole.errors import UnsupportedModelError
from keyhole.evaluation.decoding import prefill, synchronize
from keyhole.methods import Recipe
from keyhole.methods.recipe import answers

_OWN_PREFILL = ("prefill", "retention", "storage")  # TODO


@dataclass(frozen=True)
class Start:
    """A cache that holds all of a prompt but its last token, indexed, and the seconds that took."""

    cache: DynamicCache
    seconds: float


class Prompt:
    """The tokens `[1, T]` of a prompt, T at least 2, and the dense keys and values of all but the last."""

    def __init__(self, model: PreTrainedModel, tokens: Tensor) -> None:
        if tokens.shape[1] < 2:
            raise ValueError(f"a prompt of {tokens.shape[1]} tokens is too short; give at least 2")
        self.model, self.tokens = model, tokens
        self._dense = start(model, Recipe.parse("dense"), tokens)
        if not served_layers(self._dense.cache):
            raise UnsupportedModelError(f"{type(model).__name__} has no layer of full attention to serve")

    @property
    def last(self) -> int:
        return int(self.tokens[0, -1])

    def start(self, recipe: Recipe) -> Start:
        """A fresh cache for a recipe: a copy of the dense keys and values, unless it makes its own.

        Its seconds are what the recipe would have needed alone: prefill and index, without the copying.
        """
        if any(answers(stage, question) for stage in recipe.stages for question in _OWN_PREFILL):
            return start(self.model, recipe, self.tokens)
        cache = make_cache(self.model, recipe)
        for index, held in enumerate(self._dense.cache.layers):
            mine = cache.layers[index]
            if isinstance(held, KeyholeLayer) and isinstance(mine, KeyholeLayer):
                mine.inner.take(held.inner)
                mine.is_initialized = True
            else:
                cache.layers[index] = deepcopy(held)
        return Start(cache, self._dense.seconds + _index(self.model, cache))


def start(
    model: PreTrainedModel,
    recipe: Recipe,
    tokens: Tensor,
    *,
    chunk: int = 8192,
    progress: Callable[[int], None] | None = None,
) -> Start:
    """Prefill and index a fresh cache with all of `tokens [1, T]` but the last."""
    cache = make_cache(model, recipe)
    seconds = prefill(model, tokens[:, :-1], cache, chunk=chunk, progress=progress)
    return Start(cache, seconds + _index(model, cache))


def _index(model: PreTrainedModel, cache: DynamicCache) -> float:
    """Build the indexes now, not at the first decode step; returns the seconds."""
    started = time.perf_counter()
    for layer in served_layers(cache):
        layer.prepare()
    synchronize(model.device)
    return time.perf_counter() - started
