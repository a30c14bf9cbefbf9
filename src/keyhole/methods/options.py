"""The options of a method, each declared once: its default, type, range, unit and meaning.

A method is a frozen dataclass whose fields are made by the functions below. Range checks, error messages,
the documentation's tables and a JSON schema are made from the declaration. A subclass that only has another
default writes just that: `sinks: int = 8`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import Field, field, fields
from typing import Any

from keyhole.core.budget import Budget
from keyhole.methods.option_kinds import (
    BudgetOption,
    Bytes,
    Choice,
    Directory,
    Flag,
    Integer,
    Layers,
    Number,
    Option,
)

_KEY = "option"


def integer(default: Any, *, ge: int, **more: Any) -> Any:
    """A dataclass field that is a whole number of at least `ge`; see `Integer` for the rest."""
    return _field(default, Integer(ge=ge, **more))


def number(default: Any, *, ge: float, **more: Any) -> Any:
    """A dataclass field that is a finite number of at least `ge`; see `Number` for the rest."""
    return _field(default, Number(ge=ge, **more))


def flag(default: bool, *, help: str) -> Any:
    """A dataclass field that is true or false."""
    return _field(default, Flag(help=help))


def choice(default: Any, values: Iterable[Any], **more: Any) -> Any:
    """A dataclass field that is one of `values`."""
    return _field(default, Choice(values=tuple(values), **more))


def directory(*, help: str) -> Any:
    """A dataclass field that is the name of a directory, or None."""
    return _field(None, Directory(help=help, optional=True))


def nbytes(default: int, **more: Any) -> Any:
    """A dataclass field that is a number of bytes."""
    return _field(default, Bytes(unit="bytes", **more))


def budget(default: Budget, **more: Any) -> Any:
    """A dataclass field that is a budget."""
    return _field(default, BudgetOption(**more))


def layers(*, help: str) -> Any:
    """A dataclass field that is a list of layers, or None."""
    return _field(None, Layers(help=help, optional=True))


def options_of(kind: type) -> dict[str, tuple[Option, Any]]:
    """The options of a method and their defaults, by name, in order.

    Raises:
        TypeError: a field of the method is not declared as an option, here or in a base class.
    """
    return {each.name: (_declared(kind, each), each.default) for each in fields(kind)}


def _declared(kind: type, own: Field[Any]) -> Option:
    for base in kind.__mro__:
        found = getattr(base, "__dataclass_fields__", {}).get(own.name)
        if found is not None and _KEY in found.metadata:
            return found.metadata[_KEY]
    raise TypeError(
        f"{kind.__name__}.{own.name} is not declared as an option; set its default by a function of "
        "keyhole.methods.options, such as integer(16, ge=0, help=...)"
    )


def _field(default: Any, option: Option) -> Any:
    return field(default=default, metadata={_KEY: option})
