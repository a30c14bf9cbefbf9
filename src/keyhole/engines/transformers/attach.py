"""Attach a method to a model for the length of a with-block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel

from keyhole.engines.transformers import context
from keyhole.engines.transformers.attachment import Attachment
from keyhole.engines.transformers.cache import can_serve_layers, check_method
from keyhole.engines.transformers.registration import switched
from keyhole.engines.transformers.support import checked_recipe
from keyhole.methods.base import Method
from keyhole.methods.recipe import Recipe


@contextmanager
def attach(model: PreTrainedModel, method: str | Method | Recipe | None = None) -> Iterator[Attachment]:
    """Serve the caches of a model inside the block: those it starts by `method`, a KeyholeCache by its own.

    `model.generate(...)` and `model(...)` are called as ever; a fresh DynamicCache, or none, becomes a
    KeyholeCache of the method. Without a method only KeyholeCaches that are passed are served.

    A block serves the thread or task that opened it, and what is started from there in a copy of its context
    (asyncio tasks, `asyncio.to_thread`, `contextvars.copy_context().run`); other threads are left to
    transformers, or to blocks of their own. Blocks may be nested: the innermost one counts. Leaving a block
    restores the model, also after an error. A model without layers that attend to the whole sequence is left
    alone, with a warning.

    Raises:
        SpecError: the method cannot be read.
        UnsupportedModelError: the model cannot be served, with the reason.
        UnsupportedCacheError: inside the block, for a static, quantised or offloaded cache, one of another
            model, or one that holds half a request.
        NotServedError: at the end of the block, if the model was called and nothing of it was served.
    """
    recipe = checked_recipe(model, method)
    attachment = Attachment(model, recipe)
    if not can_serve_layers(model):
        yield attachment
        return
    feedforward = None if recipe is None else check_method(recipe, model)
    with switched(model, feedforward, attachment):
        context.enter(attachment)
        try:
            yield attachment
        finally:
            context.leave(attachment)
    attachment.check_served()
