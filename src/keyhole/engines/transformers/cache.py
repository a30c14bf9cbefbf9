"""transformers caches whose full-attention layers are Keyhole's."""

from __future__ import annotations

from functools import reduce
from typing import cast

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from keyhole.engines.transformers.handle import KVHandle
from keyhole.engines.transformers.registration import switch_attention
from keyhole.engines.transformers.support import check_supported
from keyhole.errors import UnsupportedCacheError
from keyhole.layer import LayerCache
from keyhole.methods.base import Method
from keyhole.methods.recipe import Recipe
from keyhole.storage import Footprint
from keyhole.usage import Usage


class KeyholeLayer(DynamicLayer):
    """A transformers cache layer that keeps its tokens in a LayerCache and passes handles to the model."""

    def __init__(self, inner: LayerCache) -> None:
        super().__init__()
        self.inner = inner

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):  # noqa: ARG002
        self.inner.append(key_states, value_states)
        self.is_initialized = True
        return KVHandle(self.inner), KVHandle(self.inner)

    def get_seq_length(self) -> int:
        return self.inner.length

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes the negative of the tokens to remove, not {tokens_to_remove}")
        self.inner.crop(max(self.inner.length + tokens_to_remove, 0))

    def reset(self) -> None:
        self.inner.crop(0)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.inner.reorder(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.inner.reorder(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.inner.length:
            batch = self.inner.storage.view()[0].shape[0]
            self.inner.reorder(torch.arange(batch).repeat_interleave(repeats))

    def offload(self) -> None:
        raise UnsupportedCacheError(
            "Keyhole places keys and values itself; make the cache without offloading"
        )

    prefetch = offload


def make_cache(model: PreTrainedModel, method: str | Method | Recipe) -> DynamicCache:
    """A cache for one batch, to be passed to `model(...)` or `model.generate(...)` as `past_key_values`.

    The model's attention function becomes Keyhole's, which treats any other cache as transformers' sdpa does;
    `keyhole.detach(model)` restores what was there.

    Raises:
        SpecError: the method cannot be read.
        UnsupportedModelError: the model cannot be served, with the reason.
    """
    recipe = Recipe.parse(method)
    check_supported(model)
    switch_attention(model)
    cache = DynamicCache(config=model.config)
    adopt(cache, recipe, model)
    return cache


def adopt(cache: Cache, recipe: Recipe, model: PreTrainedModel) -> None:
    """Put Keyhole's layers in the place of plain full-attention layers; tokens already there are taken over.

    Raises:
        UnsupportedCacheError: a cache of a kind that cannot be taken over.
    """
    if not isinstance(cache, DynamicCache) or cache.offloading:
        raise UnsupportedCacheError(
            f"Keyhole cannot take over a {type(cache).__name__}"
            f"{' with offloading' if getattr(cache, 'offloading', False) else ''}; leave out past_key_values "
            "and cache_implementation, or pass keyhole.make_cache(model, method)"
        )
    if cache.layer_class_to_replicate is DynamicLayer and not cache.layers:
        cache.layers = DynamicCache(config=model.config).layers
        cache.layer_class_to_replicate = None
    plain = [index for index, layer in enumerate(cache.layers) if type(layer) is DynamicLayer]
    for index, inner in zip(plain, recipe.layers(len(plain)), strict=True):
        held = cast(DynamicLayer, cache.layers[index])
        cache.layers[index] = KeyholeLayer(inner)
        if held.get_seq_length():
            cache.layers[index].update(held.keys, held.values)


def served_layers(cache: Cache) -> list[LayerCache]:
    """The layers of a cache that Keyhole keeps; sliding and linear layers are not among them."""
    return [layer.inner for layer in cache.layers if isinstance(layer, KeyholeLayer)]


def usage(cache: Cache) -> Usage:
    """What decoding with this cache has read so far, over all served layers."""
    return reduce(lambda total, layer: total + layer.usage, served_layers(cache), Usage())


def footprint(cache: Cache) -> Footprint:
    """Bytes the served layers hold, by tier."""
    return reduce(lambda total, layer: total + layer.footprint, served_layers(cache), Footprint())
