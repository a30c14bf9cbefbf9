"""Attach a method to a model for the length of a with-block, or make a cache for it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from transformers import Cache, DynamicCache, PreTrainedModel

from keyhole.cache.layer import LayerCache
from keyhole.cache.usage import Usage
from keyhole.engines.transformers.cache import (
    activated,
    adopt,
    can_serve_layers,
    check_method,
    footprint,
    is_adopted,
    served_layers,
    usage,
)
from keyhole.engines.transformers.registration import switched, text_config
from keyhole.engines.transformers.support import checked_recipe
from keyhole.feedforward import Activated
from keyhole.methods.base import Method
from keyhole.methods.recipe import Recipe
from keyhole.storage import Footprint


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
    def activated(self) -> Activated:
        """Weights that decoding the latest request has read, and skipped."""
        return Activated() if self.cache is None else activated(self.cache)

    @property
    def footprint(self) -> Footprint:
        """Bytes the latest request holds, by tier."""
        return Footprint() if self.cache is None else footprint(self.cache)


@contextmanager
def attach(model: PreTrainedModel, method: str | Method | Recipe) -> Iterator[Attachment]:
    """Serve every cache the model starts inside the block by `method`.

    `model.generate(...)` and `model(...)` are called as ever; a fresh DynamicCache, or none, becomes
    Keyhole's, and keeps the method it was started with. Blocks may be nested: the innermost one counts.
    Leaving a block restores the model, also after an error. A model without layers that attend to the whole
    sequence is left alone, with a warning.

    Raises:
        SpecError: the method cannot be read.
        UnsupportedModelError: the model cannot be served, with the reason.
        UnsupportedCacheError: inside the block, for a static, quantised or offloaded cache.
    """
    recipe = checked_recipe(model, method)
    attachment = Attachment(recipe)
    if not can_serve_layers(model):
        yield attachment
        return
    feedforward = check_method(recipe, model)
    parameters = list(inspect.signature(model.forward).parameters)
    hook = partial(_take_over, attachment, parameters)
    with switched(model, feedforward):
        handle = model.register_forward_pre_hook(hook, with_kwargs=True, prepend=True)
        try:
            yield attachment
        finally:
            handle.remove()


def _take_over(
    attachment: Attachment, parameters: list[str], model: PreTrainedModel, args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any]]:
    """A forward pre-hook: makes the cache of the call, where there is to be one, Keyhole's."""
    given = dict(zip(parameters, args, strict=False)) | kwargs
    cache = given.get("past_key_values")
    if cache is None:
        if not _wants_cache(model, given):
            return args, kwargs
        cache = DynamicCache(config=model.config)
        args, kwargs = (), given | {"past_key_values": cache}
    if not is_adopted(cache):
        adopt(cache, attachment.recipe, model)
    attachment.cache = cache
    return args, kwargs


def _wants_cache(model: PreTrainedModel, given: dict[str, Any]) -> bool:
    asked = given.get("use_cache")
    return bool(getattr(text_config(model), "use_cache", False) if asked is None else asked)
