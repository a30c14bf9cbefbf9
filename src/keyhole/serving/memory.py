"""How much memory a request will hold, before it is read, and how much there is."""

from __future__ import annotations

from functools import lru_cache

import psutil
import torch
from transformers import PreTrainedModel

from keyhole.cache.layer import LayerCache
from keyhole.engines.transformers import KeyholeCache, served_layers
from keyhole.engines.transformers.sizes import Attention, attention_sizes
from keyhole.generation.decoding import CHUNK
from keyhole.methods import Recipe

MOST_METHODS = 256  # with their options, of which is remembered what was found out
_SAMPLE = 1024  # tokens by which a method is measured
_SPARE = 2  # a buffer's capacity doubles when it is full


def default_memory(device: torch.device) -> int:
    """Half of what is free where caches are held."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    return psutil.virtual_memory().available // 2


class Needs:
    """Bytes that requests hold at most, by method and length: buffers with their spare capacity.

    Keys and values of tokens cost what a layer's do that is filled with random ones; so do indexes. A method
    that drops tokens holds a piece of a prompt beside what it keeps.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._sizes = attention_sizes(model.config)
        self._measured = lru_cache(MOST_METHODS)(self._token_bytes)

    def of(self, recipe: Recipe, tokens: int) -> int:
        """Bytes of a request of so many tokens, prompt and answer; 0 where a model's sizes are not known."""
        if self._sizes is None:
            return 0
        return int(self._measured(recipe, self._sizes) * _held(recipe, tokens))

    @torch.no_grad()
    def _token_bytes(self, recipe: Recipe, sizes: Attention) -> float:
        cache = KeyholeCache(self._model, recipe)
        layers = served_layers(cache)
        if recipe.drops:
            return _SPARE * len(layers) * 2.0 * sizes.kv_heads * sizes.head_dim * self._model.dtype.itemsize
        for layer in layers:
            self._fill(layer, sizes)
        held = sum(layer.footprint.device + layer.footprint.host for layer in layers)
        return _SPARE * held / _SAMPLE

    def _fill(self, layer: LayerCache, sizes: Attention) -> None:
        shape = (1, sizes.kv_heads, _SAMPLE, sizes.head_dim)
        keys = torch.rand(shape, generator=torch.Generator().manual_seed(0)) - 0.5
        keys = keys.to(self._model.device, self._model.dtype)
        layer.append(keys, keys.clone())
        layer.prepare()


def _held(recipe: Recipe, tokens: int) -> float:
    """Tokens that are held at once."""
    stage = recipe.eviction
    if stage is None or stage.prompt == "whole":
        return tokens
    kept = stage.budget.tokens or (stage.budget.fraction or 1.0) * tokens
    return min(tokens, kept + CHUNK)
