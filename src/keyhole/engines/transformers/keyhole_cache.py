"""The cache of one batch of sequences, which knows the method and the model it is of."""

from __future__ import annotations

import weakref
from pathlib import Path

from transformers import DynamicCache, PreTrainedModel

from keyhole.cache.usage import Usage
from keyhole.core.errors import UnsupportedCacheError
from keyhole.engines.transformers import persist
from keyhole.engines.transformers.cache import (
    activated,
    adopt,
    footprint,
    request_of,
    served_layers,
    usage,
)
from keyhole.engines.transformers.support import checked_recipe
from keyhole.feedforward import Activated
from keyhole.methods.base import Method
from keyhole.methods.recipe import Recipe
from keyhole.storage import Footprint


class KeyholeCache(DynamicCache):
    """Keys and values of one batch, kept and read by `method`; pass it to the model as its cache.

    Making one does not change the model.

    Raises:
        SpecError: the method cannot be read.
        UnsupportedModelError: the model cannot be served, with the reason.
    """

    def __init__(self, model: PreTrainedModel, method: str | Method | Recipe) -> None:
        self.recipe = checked_recipe(model, method)
        super().__init__(config=model.config)
        self._model = weakref.ref(model)
        adopt(self, self.recipe, model)

    @property
    def method(self) -> str:
        """The method with its options, as text that makes it again."""
        return str(self.recipe)

    @property
    def model(self) -> PreTrainedModel:
        """The model the cache is of.

        Raises:
            UnsupportedCacheError: it is gone.
        """
        model = self._model()
        if model is None:
            raise UnsupportedCacheError("the model of this cache is gone; keep it as long as its caches")
        return model

    @property
    def prompt_length(self) -> int | None:
        """Tokens of the text, padding among them, up to which it is a prompt; None where nobody said.

        `generate` knows what it generates. A loop that calls the model itself may set this: single tokens
        before that are pieces of the prompt, and those after it are generated. Unset, a single token that
        follows several is the last piece of a prompt, and is read densely; the next ones are generated.
        """
        request = request_of(self)
        return None if request is None else request.prompt_length

    @prompt_length.setter
    def prompt_length(self, tokens: int | None) -> None:
        if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 0):
            raise ValueError(f"prompt_length={tokens!r} is no number of tokens; give 0 or more, or None")
        request = request_of(self)
        if request is not None:
            request.prompt_length = tokens

    @property
    def usage(self) -> Usage:
        """What decoding has read so far, over all served layers."""
        return usage(self)

    @property
    def activated(self) -> Activated:
        """Weights that decoding has read so far, and skipped."""
        return activated(self)

    @property
    def footprint(self) -> Footprint:
        """Bytes the served layers hold, by tier."""
        return footprint(self)

    @property
    def served(self) -> int:
        """Layers that Keyhole keeps."""
        return len(served_layers(self))

    def save(self, path: str | Path) -> None:
        """Write the cache, its index included, to a directory; `load` takes that and the model."""
        persist.write(self, path, recipe=self.recipe, model=self.model)

    @classmethod
    def load(cls, path: str | Path, model: PreTrainedModel) -> KeyholeCache:
        """A cache as it was saved.

        Raises:
            FileNotFoundError: no complete cache there.
            ValueError: damaged, of another format, or of another model; the message says what differs.
        """
        saved = persist.read(path, model)
        cache = cls(model, saved.recipe)
        saved.restore(cache)
        return cache
