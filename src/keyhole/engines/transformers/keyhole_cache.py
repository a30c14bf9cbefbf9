"""The cache of one batch of sequences, which knows the method and the model it is of."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from keyhole.cache.usage import Usage
from keyhole.core.errors import UnsupportedCacheError
from keyhole.engines.transformers import persist
from keyhole.engines.transformers.cache import (
    activated,
    adopt,
    footprint,
    is_adopted,
    request_of,
    served_layers,
    usage,
)
from keyhole.engines.transformers.calls import CallState, ServedCache, are_level
from keyhole.engines.transformers.hidden_states import layers_that_ask
from keyhole.engines.transformers.registration import is_serving, record_hidden_states
from keyhole.engines.transformers.support import checked_recipe
from keyhole.feedforward import Activated
from keyhole.methods.base import Method
from keyhole.methods.recipe import Recipe
from keyhole.storage import Footprint


class KeyholeCache(DynamicCache, ServedCache):
    """Keys and values of one batch, kept and read by `method`; pass it to the model as its cache.

    Making one does not change the model. It is used inside `with keyhole.attach(model):`, and keeps its
    method in a block of another one. After a call that broke off it is refused until `roll_back` or `reset`.

    Raises:
        SpecError: the method cannot be read.
        UnsupportedModelError: the model cannot be served, with the reason.
    """

    def __init__(self, model: PreTrainedModel, method: str | Method | Recipe) -> None:
        recipe = Recipe.parse(method)
        checked_recipe(model, recipe)
        super().__init__(config=model.config)
        adopt(self, recipe, model)
        self._know(model, recipe)

    def _know(self, model: PreTrainedModel, recipe: Recipe) -> None:
        self.recipe = recipe
        self._model = weakref.ref(model)
        self._call = CallState()
        self._asking = layers_that_ask(self)
        self._attachment: weakref.ref[Any] | None = None

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
            raise UnsupportedCacheError(
                "the model of this cache no longer exists; keep a reference to it as long as to its caches"
            )
        return model

    @property
    def attachment(self) -> Any:
        """The open attachment that the cache was started by, if any."""
        attachment = None if self._attachment is None else self._attachment()
        return None if attachment is None or attachment.closed else attachment

    @property
    def prompt_length(self) -> int | None:
        """Tokens of the text, padding among them, up to which it is a prompt; None where it is unknown.

        `generate` knows what it generates. A loop that calls the model itself may set this: single tokens
        before that are pieces of the prompt, and those after it are generated. Unset, a single token that
        follows several is the last piece of a prompt, and is read densely; the next ones are generated.
        """
        request = request_of(self)
        return None if request is None else request.prompt_length

    @prompt_length.setter
    def prompt_length(self, tokens: int | None) -> None:
        if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 0):
            raise ValueError(f"prompt_length={tokens!r} is not a number of tokens; give 0 or more, or None")
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

    def begin_call(self, model: PreTrainedModel) -> None:
        """A call of the model with this cache begins.

        Raises:
            UnsupportedCacheError: the cache is of another model, or an earlier call broke off.
        """
        if self.model is not model:
            raise UnsupportedCacheError(
                f"this cache was made for another {type(self.model).__name__}; make one for this model, by "
                "keyhole.KeyholeCache(model, method)"
            )
        self._check_whole()
        self._call.begin(self._tokens, request_of(self))

    def end_call(self) -> bool:
        """It is over; returns whether any tokens came."""
        self._call.running = False
        return self._call.last >= 0

    def get_mask_sizes(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        self._check_attached()  # the first thing that a model asks of its cache
        return super().get_mask_sizes(*args, **kwargs)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if layer_idx <= self._call.last:  # a part of the model is called, which begins no call
            self._check_level()
            self._call.mark(self._tokens, request_of(self))
        if not 0 <= self._call.last < layer_idx:
            self._check_attached()
        self._call.last = layer_idx
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    @property
    def is_plain(self) -> bool:
        return type(self) is KeyholeCache and not self._asking

    def begin_step(self) -> None:
        if self._call.last >= 0:
            self._check_level()
            self._call.mark(self._tokens, request_of(self))
        self._check_attached()
        self._call.last = len(self.layers) - 1

    def crop(self, tokens_to_remove: int) -> None:
        self._check_whole()
        super().crop(tokens_to_remove)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        with self._changing_rows():
            super().reorder_cache(cast(torch.LongTensor, beam_idx))

    def batch_repeat_interleave(self, repeats: int) -> None:
        with self._changing_rows():
            super().batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        with self._changing_rows():
            super().batch_select_indices(indices)

    @contextmanager
    def _changing_rows(self) -> Iterator[None]:
        """All layers take other rows, which their lengths do not tell of."""
        self._check_whole()
        self._call.changing = True
        yield
        self._call.changing = False

    def reset(self) -> None:
        super().reset()
        self._call = CallState()

    def roll_back(self) -> None:
        """Take back a call that broke off: the cache holds what it held before. Else nothing happens.

        Raises:
            UnsupportedCacheError: the method drops tokens, or has noted or quantised what does not come back;
                the model has layers that are not served; or a layer was changing when the call broke off.
        """
        if self._call.is_whole(self.layers):
            return
        if not self._call.can_roll_back(self.layers):
            raise self._broken()
        self._call.roll_back(self.layers)

    def save(self, path: str | Path) -> None:
        """Write the cache, its index included, to a directory; `load` takes that and the model.

        What was saved there before stays until the new cache is whole; a second writer waits.

        Raises:
            UnsupportedCacheError: the cache holds nothing, half a call, or something that cannot be saved.
            UnsupportedModelError: a weight of the model cannot be read, to tell the model from others.
            OSError: the directory cannot be written to, with its path.
        """
        self._check_whole()
        persist.write(self, path, recipe=self.recipe, model=self.model)

    @classmethod
    def load(
        cls, path: str | Path, model: PreTrainedModel, method: str | Method | Recipe | None = None
    ) -> KeyholeCache:
        """A cache as it was saved.

        Args:
            method: the method it was saved with, to place keys and values elsewhere: only `place`,
                `block_cache` and `block_eviction` may differ.

        Raises:
            FileNotFoundError: no cache there.
            SavedStateError: damaged, of another format, method or model; the message says what differs.
        """
        saved = persist.read(path, model, method)
        cache = cls(model, saved.recipe)
        saved.restore(cache)
        return cache

    def __deepcopy__(self, memo: dict[int, Any]) -> KeyholeCache:
        copied = memo[id(self)] = type(self).__new__(type(self))
        vars(copied).update({name: deepcopy(value, memo) for name, value in vars(self).items()})
        copied._attachment = None
        return copied

    def __reduce_ex__(self, _protocol: Any) -> NoReturn:
        raise UnsupportedCacheError(
            "a KeyholeCache belongs to a model and cannot be pickled; cache.save(path) writes it, "
            "keyhole.KeyholeCache.load(path, model) reads it, and copy.deepcopy(cache) copies it"
        )

    @property
    def _tokens(self) -> int:
        return max((layer.length for layer in served_layers(self)), default=0)

    def _check_attached(self) -> None:
        if self.served and not is_serving(self.model):
            raise UnsupportedCacheError(
                f"this cache is served by {self.method}, and its model is not attached; use it inside "
                "`with keyhole.attach(model):`"
            )
        if self._asking:
            record_hidden_states(self.model, self._asking)

    def _check_whole(self) -> None:
        if not self._call.is_whole(self.layers):
            raise self._broken()

    def _check_level(self) -> None:
        if not are_level(self.layers):
            raise self._broken()

    def _broken(self) -> UnsupportedCacheError:
        way_out = "start a new cache"
        if self._call.can_roll_back(self.layers):
            way_out = "cache.roll_back() takes that call back"
        return UnsupportedCacheError(
            f"a call with this cache of {self.method} broke off, so that some of its layers may lack tokens, "
            f"or hold other rows, than others; {way_out}"
        )


def take_over(cache: Cache, attachment: Any, recipe: Recipe, model: PreTrainedModel) -> Cache:
    """Make a cache that holds no layers of Keyhole's yet a KeyholeCache, the very object.

    Raises:
        UnsupportedCacheError: a cache of a kind that cannot be taken over; it is left as it was.
        NonFiniteError: as that, for NaN or infinity among the tokens already there.
    """
    if is_adopted(cache):
        return cache
    adopt(cache, recipe, model)
    cache.__class__ = _keyhole_class(type(cache))
    assert isinstance(cache, KeyholeCache)
    cache._know(model, recipe)
    cache._attachment = weakref.ref(attachment)
    return cache


@lru_cache
def _keyhole_class(kind: type) -> type:
    """KeyholeCache, or a subclass of it for one of DynamicCache."""
    return KeyholeCache if kind is DynamicCache else type(kind.__name__, (KeyholeCache, kind), {})
