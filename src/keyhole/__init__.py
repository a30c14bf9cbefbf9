"""Keyhole: long-context inference that touches only the part of the KV cache that matters."""

from keyhole.budget import Budget
from keyhole.engines.transformers import attach, detach, footprint, make_cache, served_layers, usage
from keyhole.errors import (
    NonFiniteError,
    SpecError,
    UnsupportedCacheError,
    UnsupportedModelError,
)
from keyhole.methods import METHODS, Method, Recipe

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "Budget",
    "Method",
    "NonFiniteError",
    "Recipe",
    "SpecError",
    "UnsupportedCacheError",
    "UnsupportedModelError",
    "attach",
    "detach",
    "footprint",
    "make_cache",
    "served_layers",
    "usage",
]
