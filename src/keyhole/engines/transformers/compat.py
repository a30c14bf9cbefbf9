"""The name of a cache in transformers: `cache` from 5.24 on, `past_key_values` before."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from transformers import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

_NAMES = ("cache", "past_key_values")

# By which `generate` takes a cache and outputs return it. A model's forward may keep the older name.
CACHE = next(name for name in _NAMES if name in {field.name for field in fields(BaseModelOutputWithPast)})


def cache_argument(forward: Callable[..., Any]) -> str:
    """The name by which a model, or a forward function, takes a cache."""
    parameters = inspect.signature(getattr(forward, "forward", forward)).parameters
    return next((name for name in (CACHE, *_NAMES) if name in parameters), CACHE)


def given_cache(arguments: Mapping[str, Any]) -> Cache | None:
    """The cache among the arguments of a call, by whichever name the caller used."""
    return next((arguments[name] for name in _NAMES if arguments.get(name) is not None), None)


def with_cache(arguments: Mapping[str, Any], name: str, cache: Cache) -> dict[str, Any]:
    """The arguments of a call with `cache` in the place of what was given, by the forward's own `name`."""
    return {key: value for key, value in arguments.items() if key not in _NAMES} | {name: cache}


def returned_cache(output: Any) -> Cache | None:
    """The cache in what a model, or `generate`, returned."""
    return getattr(output, CACHE, None)
