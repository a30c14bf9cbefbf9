"""Keyhole: long-context inference that touches only the part of the KV cache that matters."""

import ast
from importlib import import_module
from pathlib import Path

from keyhole.core.version import __version__ as __version__


def _homes() -> dict[str, str]:
    """The module of each public name, as `__init__.pyi` lists them for people and type checkers."""
    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [statement for statement in stub.body if isinstance(statement, ast.ImportFrom)]
    return {name.name: str(each.module) for each in imports for name in each.names}


_HOMES = _homes()
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    # Imported when first asked for, so that `keyhole --help` need not wait for torch and transformers.
    if name not in _HOMES:
        raise AttributeError(f"module 'keyhole' has no attribute {name!r}")
    globals()[name] = getattr(import_module(_HOMES[name]), name)
    return globals()[name]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
