"""Keyhole: long-context inference that touches only the part of the KV cache that matters."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from keyhole.core.budget import Budget
    from keyhole.core.errors import (
        DamagedStorageError,
        NonFiniteError,
        SpecError,
        UnsupportedCacheError,
        UnsupportedModelError,
    )
    from keyhole.engines.transformers import (
        KeyholeCache,
        activated,
        attach,
        captured,
        captured_generate,
        detach,
        footprint,
        load_cache,
        make_cache,
        save_cache,
        served_layers,
        usage,
    )
    from keyhole.generation import Answer, generate
    from keyhole.methods import METHODS, Method, Recipe, register
    from keyhole.models import default_model

__version__ = "0.1.0"

__all__ = [
    "METHODS",
    "Answer",
    "Budget",
    "DamagedStorageError",
    "KeyholeCache",
    "Method",
    "NonFiniteError",
    "Recipe",
    "SpecError",
    "UnsupportedCacheError",
    "UnsupportedModelError",
    "activated",
    "attach",
    "captured",
    "captured_generate",
    "default_model",
    "detach",
    "footprint",
    "generate",
    "load_cache",
    "make_cache",
    "register",
    "save_cache",
    "served_layers",
    "usage",
]

# Imported when first asked for, so that `keyhole --help` need not wait for torch and transformers.
_HOMES = {
    "keyhole.core.budget": ("Budget",),
    "keyhole.engines.transformers": (
        "KeyholeCache",
        "activated",
        "attach",
        "captured",
        "captured_generate",
        "detach",
        "footprint",
        "load_cache",
        "make_cache",
        "save_cache",
        "served_layers",
        "usage",
    ),
    "keyhole.core.errors": (
        "DamagedStorageError",
        "NonFiniteError",
        "SpecError",
        "UnsupportedCacheError",
        "UnsupportedModelError",
    ),
    "keyhole.generation": ("Answer", "generate"),
    "keyhole.methods": ("METHODS", "Method", "Recipe", "register"),
    "keyhole.models": ("default_model",),
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            module = import_module(home)
            globals().update({each: getattr(module, each) for each in names})
            return globals()[name]
    raise AttributeError(f"module 'keyhole' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
