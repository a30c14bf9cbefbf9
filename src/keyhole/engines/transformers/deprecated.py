"""Names of version 0.1, kept for a while: each says what took its place."""

from __future__ import annotations

import warnings
from pathlib import Path

from transformers import Cache, PreTrainedModel

from keyhole.engines.transformers import persist
from keyhole.engines.transformers.cache import can_serve_layers
from keyhole.engines.transformers.keyhole_cache import KeyholeCache
from keyhole.engines.transformers.registration import keep_switched
from keyhole.engines.transformers.sparse_ffn.skipping import sparse_steps
from keyhole.methods.base import Method
from keyhole.methods.recipe import Recipe


def make_cache(model: PreTrainedModel, method: str | Method | Recipe) -> KeyholeCache:
    """Use `KeyholeCache(model, method)` inside `with keyhole.attach(model)`.

    Unlike these two it leaves the model switched to Keyhole's attention until `detach`.
    """
    _warn("make_cache(model, method)", "KeyholeCache(model, method) inside `with keyhole.attach(model)`")
    cache = KeyholeCache(model, method)
    if can_serve_layers(model):
        steps = sparse_steps(cache)
        keep_switched(model, steps.feedforward if steps else None)
    return cache


def save_cache(
    cache: Cache,
    directory: str | Path,
    *,
    model: PreTrainedModel | None = None,  # noqa: ARG001
    method: str | Method | Recipe | None = None,
) -> None:
    """Use `cache.save(path)`.

    Args:
        method: the cache's own, or one that differs only in where keys and values are kept; that is loaded.

    Raises:
        ValueError: the cache is not of the method that is named.
    """
    _warn("save_cache", "cache.save(path)")
    if not isinstance(cache, KeyholeCache):
        raise ValueError(
            f"a {type(cache).__name__} cannot be saved; make a keyhole.KeyholeCache(model, method)"
        )
    recipe = cache.recipe if method is None else Recipe.parse(method)
    if not persist.placed_otherwise(cache.recipe, recipe):
        raise ValueError(f"the cache is of {cache.method}, not of {recipe}; leave out `method`")
    persist.write(cache, directory, recipe=recipe, model=cache.model)


def load_cache(directory: str | Path, model: PreTrainedModel) -> KeyholeCache:
    """Use `KeyholeCache.load(path, model)` inside `with keyhole.attach(model)`."""
    _warn("load_cache", "KeyholeCache.load(path, model)")
    cache = KeyholeCache.load(directory, model)
    keep_switched(model)
    return cache


def _warn(old: str, new: str) -> None:
    warnings.warn(f"keyhole.{old} is deprecated; use {new}", DeprecationWarning, stacklevel=3)
