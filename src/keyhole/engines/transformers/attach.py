"""Attach a method to a model for the length of a with-block."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from transformers import Cache, DynamicCache, PreTrainedModel

from keyhole.engines.transformers.cache import KeyholeLayer, adopt, footprint, served_layers, usage
from keyhole.engines.transformers.registration import NAME, detach, switch_attention
from keyhole.engines.transformers.support import check_supported
from keyhole.layer import LayerCache
from keyhole.methods.base import Method
from keyhole.methods.recipe import Recipe
from keyhole.storage import Footprint
from keyhole.usage import Usage


@dataclass
class Attachment:
    """What `attach` yields: the method, and the cache of the latest request."""

    recipe: Recipe
    cache: Cache | None = None

    @property
    def layers(self) -> list[LayerCache]:
        return [] if self.cache is None else served_layers(self.cache)

    @property
    def usage(self) -> Usage:
        """What decoding the latest request has read."""
        return Usage() if self.cache is None else usage(self.cache)

    @property
    def footprint(self) -> Footprint:
        """Bytes the latest request holds, by tier."""
        return Footprint() if self.cache is None else footprint(self.cache)


@contextmanager
def attach(model: PreTrainedModel, method: str | Method | Recipe) -> Iterator[Attachment]:
    """Serve every cache the model starts inside the block by `method`.

    `model.generate(...)` and `model(...)` are called as ever; a fresh DynamicCache, or none, becomes
    Keyhole's. Leaving the block restores the model, also after an error.

    Raises:
        SpecError: the method cannot be read.
        UnsupportedModelError: the model cannot be served, with the reason.
        UnsupportedCacheError: inside the block, for a static, quantised or offloaded cache.
    """
    recipe = Recipe.parse(method)
    check_supported(model)
    attachment = Attachment(recipe)
    nested = model.config._attn_implementation == NAME
    switch_attention(model)
    parameters = list(inspect.signature(model.forward).parameters)

    def take_over(_module, args, kwargs):
        given = dict(zip(parameters, args, strict=False)) | kwargs
        cache = given.get("past_key_values")
        if cache is None and given.get("use_cache", model.config.get_text_config().use_cache):
            cache = DynamicCache(config=model.config)
            args, kwargs = (), given | {"past_key_values": cache}
        if cache is not None:
            if not any(isinstance(layer, KeyholeLayer) for layer in cache.layers):
                adopt(cache, recipe, model)
            attachment.cache = cache
        return args, kwargs

    hook = model.register_forward_pre_hook(take_over, with_kwargs=True, prepend=True)
    try:
        yield attachment
    finally:
        hook.remove()
        if not nested:
            detach(model)
