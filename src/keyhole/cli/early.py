"""Arguments checked before torch is imported or a model is loaded, both of which take long."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import typer

from keyhole.core.budget import Budget
from keyhole.core.errors import SpecError
from keyhole.core.method_text import nearest, read_terms
from keyhole.core.numbers import GREATEST, MOST_TOKENS, shown

_VARYING = ("mass", "error", "floor", "cap")


def check_method(spec: str) -> None:
    """Find unknown methods and options, and values out of range; the rest shows when the method is made.

    Raises:
        SpecError: as the method itself would.
    """
    table = _table()
    for name, options in read_terms(spec):
        if name in table:
            _check_options(name, options, table[name])
        elif name not in _plugins():
            raise SpecError(f"unknown method {name!r}{nearest(name, [*table, *_plugins()])}")


def check_served(spec: str) -> None:
    """As `check_method`, of a method that is to serve a model: options it cannot do without are given.

    Raises:
        SpecError: as the method itself would.
    """
    check_method(spec)
    for name, options in read_terms(spec):
        for option, way in _table().get(name, {}).get("required", {}).items():
            if options.get(option) is None:
                raise SpecError(f"{name} needs {option}=; {way}")


def check_budgets(budgets: list[str]) -> None:
    """Raise SpecError unless each of them can be read."""
    for budget in budgets:
        Budget.parse(budget)


def within(low: float, high: float, *, above: bool = False) -> Callable[[float | None], float | None]:
    """A callback of typer that refuses NaN and what is not in [low, high], or (low, high] where `above`.

    An option that is not given may be None.
    """

    def check(value: float | None) -> float | None:
        # NaN compares as false.
        if value is not None and not (low < value <= high if above else low <= value <= high):
            range_ = f"({low:g}, {high:g}]" if above else f"[{low:g}, {high:g}]"
            raise typer.BadParameter(f"{value:g} is not in the range {range_}.")
        return value

    return check


def _check_options(name: str, options: dict[str, Any], known: dict[str, Any]) -> None:
    allowed = list(known["options"])
    for option, value in options.items():
        if option in known["renamed"]:
            raise _renaming(name, option, value, known["renamed"][option])
        if option in _VARYING and "budget" in allowed and option not in allowed:
            raise _refused(name, allowed)
        if option not in allowed:
            raise SpecError(f"{name} has no option {option!r}{nearest(option, allowed)}")
        if option == "budget":
            budget = Budget.parse(value)
            if any(getattr(budget, kind) is not None and kind not in allowed for kind in ("mass", "error")):
                raise _refused(name, allowed)
        elif option not in _VARYING:
            _check_value(f"{name}: {option}", value, known["options"][option])


def _renaming(name: str, option: str, value: Any, new: str) -> SpecError:
    word = isinstance(value, str) and value.isidentifier()
    return SpecError(f"{name}: {option}= is now {new}=; write {new}={value if word else shown(value)}")


def _refused(name: str, allowed: list[str]) -> SpecError:
    if "mass" in allowed:
        return SpecError(
            f"{name} cannot keep to a budget of error, which needs an index that "
            "estimates each token; give oracle, pqcache or tokenselect, or tokens (budget=256), a fraction "
            "of the context (budget=0.1) or mass (mass=0.95)"
        )
    return SpecError(
        f"{name} cannot guarantee a budget of error or of attention mass; give tokens (budget=256) or a "
        "fraction of the context (budget=0.1)"
    )


def _check_value(what: str, value: Any, schema: dict[str, Any]) -> None:
    choices = schema.get("anyOf", [schema])
    if not any(_fits(value, choice) for choice in choices):
        ranges = ", or ".join(text for choice in choices if (text := _allowed(choice)))
        raise SpecError(f"{what}={shown(value)} is out of range; give {ranges}")


def _fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value may be of a schema; those that are not numbers, flags or words are not looked into."""
    if "enum" in schema:
        # Values of former versions have a message of their own.
        return isinstance(value, str) or any(value == each for each in schema["enum"])
    kind = schema.get("type")
    if kind == "boolean":
        return isinstance(value, bool)
    if kind == "null":
        return value is None or value == "None"
    if kind in ("integer", "number"):
        return _in_range(value, schema)
    return not isinstance(value, int | float)


def _in_range(value: Any, schema: dict[str, Any]) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole and not (schema["type"] == "number" and isinstance(value, float) and math.isfinite(value)):
        return False
    low, high = schema.get("minimum", -GREATEST), schema.get("maximum", GREATEST)
    return low <= value <= high and value < schema.get("exclusiveMaximum", math.inf)


def _allowed(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    kind = schema.get("type")
    if kind not in ("integer", "number"):
        return {"boolean": "true or false", "null": "None", "string": "text", "array": "a list"}.get(
            kind or "", ""
        )
    noun = "a whole number" if kind == "integer" else "a number"
    low, high = schema.get("minimum"), schema.get("maximum", schema.get("exclusiveMaximum"))
    bounded = high is not None and high != MOST_TOKENS
    return f"{noun}, {low} to {high}" if bounded else f"{noun}, at least {low}"


@cache
def _table() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "methods.json").read_text(encoding="utf-8"))


@cache
def _plugins() -> tuple[str, ...]:
    """Methods of other packages, which are checked when they are made."""
    return tuple(point.name for point in entry_points(group="keyhole.methods"))
