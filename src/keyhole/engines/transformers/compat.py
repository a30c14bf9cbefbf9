"""What goes by several names in transformers 5.16 to 5.24: caches, and activation checkpointing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from transformers import Cache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

_NAMES = ("cache", "past_key_values")

# The name by which `generate` takes a cache and outputs return it. A model's forward may keep the older name.
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


def leaves_caches_out(model: PreTrainedModel) -> bool:
    """Whether the model's layers are given no cache: they are computed again for gradients."""
    return model.training and any(getattr(part, "gradient_checkpointing", False) for part in model.modules())
