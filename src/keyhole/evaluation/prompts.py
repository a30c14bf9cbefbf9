"""Prompts in the caches of many methods: computed densely once where they only read them differently."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from keyhole.cache.prompted import SHOWN
from keyhole.core.errors import UnsupportedModelError
from keyhole.engines.transformers import KeyholeCache, make_cache, served_layers
from keyhole.engines.transformers.cache import KeyholeLayer, is_served
from keyhole.engines.transformers.hybrid import HybridLayer
from keyhole.generation.decoding import build_index, prefill
from keyhole.methods import Recipe
from keyhole.methods.recipe import answers

_OWN_PREFILL = ("prefill", "storage")
_PIECE = 8192  # tokens of a prompt computed at once


@dataclass(frozen=True)
class Start:
    """A cache that holds all of a prompt but its last token, indexed, and the seconds that took."""

    cache: KeyholeCache
    seconds: float


class Prompt:
    """The tokens `[B, T]` of prompts of one length, T at least 2, and their dense keys and values.

    Args:
        queries: hold the queries too, as methods that drop tokens need; they take more memory than the keys.
    """

    def __init__(self, model: PreTrainedModel, tokens: Tensor, *, queries: bool = True) -> None:
        if tokens.shape[1] < 2:
            raise ValueError(f"a prompt of {tokens.shape[1]} tokens is too short; give at least 2")
        self.model, self.tokens = model, tokens
        # Methods that drop tokens may want to see all of a prompt's queries.
        self._remember = _PIECE if queries and tokens.shape[1] <= _PIECE else SHOWN
        dense = start(model, Recipe.parse("dense"), tokens, remember=self._remember)
        if not served_layers(dense.cache):
            raise UnsupportedModelError(f"{type(model).__name__} has no layer of full attention to serve")
        self._source, self._seconds = dense.cache, dense.seconds
        self._last_seconds = self._add_last()

    def _add_last(self) -> float:
        """Add the prompt's last token to the layers that Keyhole serves, not to others; returns seconds."""
        cache = self._source
        cache.prompt_length = self.tokens.shape[1]
        before: list[Any] = [
            layer if isinstance(layer, KeyholeLayer) else _other(layer) for layer in cache.layers
        ]
        seconds = prefill(self.model, self.tokens[:, -1:], cache)
        cache.layers = before
        return seconds

    @property
    def last(self) -> int:
        return int(self.tokens[0, -1])

    def start(self, recipe: Recipe) -> Start:
        """A fresh cache for a recipe: a copy of the dense keys and values, unless it makes its own.

        Its seconds are what the recipe would have needed alone: prefill, dropping, index. What drops tokens
        is shown the prompt's last token before it does; that token is taken back then, as in other caches.
        """
        evicts = recipe.drops
        own = any(answers(stage, question) for stage in recipe.stages for question in _OWN_PREFILL)
        if own or (evicts and self._remember != _PIECE):
            return start(self.model, recipe, self.tokens)
        cache = make_cache(self.model, recipe)
        held = self.tokens.shape[1] - 1
        started = time.perf_counter()
        take_over(self._source, cache, None if evicts else held)
        for layer in served_layers(cache):
            layer.crop(held)
        dropping = time.perf_counter() - started + self._last_seconds if evicts else 0.0
        return Start(cache, self._seconds + dropping + build_index(self.model, cache))


def take_over(source: KeyholeCache, target: KeyholeCache, length: int | None = None) -> None:
    """Let the layers of a fresh cache hold what those of another do, their first `length` tokens."""
    for index, held in enumerate(source.layers):
        mine = target.layers[index]
        if not is_served(mine):
            target.layers[index] = deepcopy(held)
            continue
        assert is_served(held)  # both caches are of one model
        mine.inner.take(held.inner, length)
        if isinstance(mine, HybridLayer):
            target.layers[index] = _other(held, mine.attention)
        mine.is_initialized = True


def _other(layer: Any, attention: Any = None) -> Any:
    """A copy of a layer; of one with a linear state beside keys and values, only the state is copied.

    Args:
        attention: the Keyhole layer beside the state; that of `layer` where not given.
    """
    held = getattr(layer, "attention", None)
    return deepcopy(layer, {id(held): attention or held} if isinstance(layer, HybridLayer) else None)


def start(
    model: PreTrainedModel,
    recipe: Recipe,
    tokens: Tensor,
    *,
    chunk: int = _PIECE,
    remember: int = SHOWN,
    progress: Callable[[int], None] | None = None,
) -> Start:
    """Prefill and index a fresh cache with all of `tokens [B, T]` but the last.

    Args:
        chunk: tokens computed at once, at most.
        remember: newest queries of the prompt that layers hold for others to take.
    """
    cache = make_cache(model, recipe)
    for layer in served_layers(cache):
        layer.remember = remember
    seconds = prefill(model, tokens[:, :-1], cache, chunk=chunk, progress=progress)
    return Start(cache, seconds + build_index(model, cache))
