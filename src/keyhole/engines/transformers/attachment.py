"""What `attach` yields: the method, and what came of the latest request."""

from __future__ import annotations

from functools import cached_property
from typing import Any
from weakref import ref

from transformers import Cache, DynamicCache, PreTrainedModel

from keyhole.cache.layer import LayerCache
from keyhole.cache.usage import Usage
from keyhole.core.errors import NotServedError
from keyhole.engines.transformers.cache import activated, footprint, served_layers, usage
from keyhole.engines.transformers.compat import leaves_caches_out
from keyhole.engines.transformers.keyhole_cache import KeyholeCache, take_over
from keyhole.feedforward import Activated
from keyhole.methods.recipe import Recipe
from keyhole.storage import Footprint


class Attachment:
    """The requests of one thread or task, and of what was started from it, while a block is open.

    Attributes:
        recipe: serves caches that are started; with None, only KeyholeCaches that are passed are served.
        cache: of the latest request. A request with two branches (`guidance_scale`) has two, whose steps
            interleave: of these it is the one that began first, which `generate` returns.
        closed: whether the block is over.
    """

    def __init__(self, model: PreTrainedModel, recipe: Recipe | None) -> None:
        self.recipe = recipe
        self.cache: Cache | None = None
        self.closed = False
        self._model = ref(model)
        self._earlier: ref[Cache] | None = None  # the cache of the request before, which may go on
        self._branch: ref[Cache] | None = None
        self._served = False
        self._called = False  # a call of the model goes on
        self._reason = ""  # why a call was not served

    @property
    def method(self) -> str | None:
        """The method with its options, as text that makes it again."""
        return None if self.recipe is None else str(self.recipe)

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

    def serves(self, model: object) -> bool:
        """Whether it is of that model."""
        return self._model() is model

    def receive(self, model: PreTrainedModel, cache: Cache | None, tokens: int) -> Cache | None:
        """The cache that a call of so many tokens is to use, given this one."""
        self._called = True
        if self.recipe is not None:
            cache = DynamicCache(config=model.config) if cache is None else cache
            cache = take_over(cache, self, self.recipe, model)
        if isinstance(cache, KeyholeCache):
            (cache.attachment or self).note(cache, tokens)
        return cache

    def note(self, cache: Cache, tokens: int) -> None:
        """A call with a cache of this attachment's begins."""
        if cache is self.cache or (tokens == 1 and _is(self._branch, cache)):
            return
        if tokens == 1 and _is(self._earlier, cache) and self.cache is not None:
            self._branch = ref(self.cache)
        else:
            self._earlier = None if self.cache is None else ref(self.cache)
            self._branch = None
        self.cache = cache

    def finish(self, served: bool) -> None:
        """A call that asked for a cache is over."""
        self._called = False
        if served:
            self._served = True
        elif self.recipe is None:
            self._reason = "no method was given; give attach(model, method), or pass a KeyholeCache"
        else:
            self._reason = _why_no_step(self._model())

    def pass_by(self, module: Any) -> None:
        """An attention module was given keys of a cache that is not Keyhole's."""
        if self.recipe is not None and not self._called and id(module) in self._modules:
            self._reason = "a part of the model was called with a cache of its own; call the model itself"

    @cached_property
    def _modules(self) -> frozenset[int]:
        model = self._model()
        return frozenset() if model is None else frozenset(map(id, model.modules()))

    def miss(self) -> None:
        """A call of another thread or task went past it."""
        self._reason = (
            "the model was called from a thread or a task that was not started from the block; start threads "
            "with contextvars.copy_context().run, attach inside the thread, or pass a KeyholeCache"
        )

    def check_served(self) -> None:
        """Raise NotServedError if the model was called with a cache wanted, and nothing went through here."""
        if self._reason and not self._served:
            raise NotServedError(f"nothing was served inside the `attach` block: {self._reason}")


def _is(reference: ref[Cache] | None, cache: Cache) -> bool:
    return reference is not None and reference() is cache


def _why_no_step(model: PreTrainedModel | None) -> str:
    if model is not None and leaves_caches_out(model):
        return (
            "gradient checkpointing leaves caches out in training mode; call model.eval(), or train without "
            "attaching"
        )
    return (
        f"no keys came to the cache that this {type(model).__name__} was given; its code does not pass the "
        "cache on to its layers"
    )
