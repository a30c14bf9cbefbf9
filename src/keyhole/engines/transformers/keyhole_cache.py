"""The cache of one batch of sequences, which knows the method and the model it is of."""

from __future__ import annotations

import weakref
from pathlib import Path

from transformers import DynamicCache, PreTrainedModel

from keyhole.cache.usage import Usage
from keyhole.core.errors import UnsupportedCacheError
from keyhole.engines.transformers import persist
from keyhole.engines.transformers.cache import activated, adopt, footprint, served_layers, usage
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
        """Write the cache, its index included, to a directory; `load` takes that and the model.

        What was saved there before stays until the new cache is whole; a second writer waits.

        Raises:
            UnsupportedCacheError: the cache holds nothing, or something that cannot be saved.
            UnsupportedModelError: a weight of the model cannot be read, to tell the model from others.
            OSError: the directory cannot be written to, with its path.
        """
        persist.write(self, path, recipe=self.recipe, model=self.model)

    @classmethod
    def load(
        cls, path: str | Path, model: PreTrainedModel, method: str | Method | Recipe | None = None
    ) -> KeyholeCache:
        """A cache as it was saved.

        Args:
            method: the method it was saved with, to have keys and values in another place: `place`, `cache`
                and `eviction` may differ.

        Raises:
            FileNotFoundError: no cache there.
            SavedStateError: damaged, of another format, method or model; the message says what differs.
        """
        saved = persist.read(path, model, method)
        cache = cls(model, saved.recipe)
        saved.restore(cache)
        return cache
