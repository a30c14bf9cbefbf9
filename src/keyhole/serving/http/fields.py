"""Reading the fields of a JSON object, each by its type and range.

A field that is null counts as absent, as in OpenAI's API. What is not read is unknown, and refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from keyhole.serving.http.errors import ApiError

_SHOWN = 60  # characters of a value in a message
_LISTED = 5  # unknown fields that a message names


class Fields:
    """The fields of one object of a request.

    Args:
        at: where the object is, as a beginning of the names in messages.
    """

    def __init__(self, values: Any, at: str = "") -> None:
        if not isinstance(values, dict):
            raise wrong_type(at.rstrip(".") or "the body", "an object", values)
        self._values: dict[str, Any] = values
        self._at = at
        self._read: set[str] = set()

    def name(self, field: str) -> str:
        """A field as messages name it."""
        return f"{self._at}{field}"

    def any(self, field: str) -> Any:
        """A value as it is; None where it is absent."""
        self._read.add(field)
        return self._values.get(field)

    def required(self, field: str) -> Any:
        value = self.any(field)
        if value is None:
            raise ApiError(
                f"{self.name(field)!r} is missing; it is required",
                param=self.name(field),
                code="missing_required_parameter",
            )
        return value

    def text(self, field: str, *, most: int | None = None) -> str | None:
        value = self.any(field)
        if value is None:
            return None
        if not isinstance(value, str):
            raise wrong_type(self.name(field), "a string", value)
        if most is not None and len(value) > most:
            raise out_of_range(self.name(field), f"{len(value)} characters", f"at most {most}")
        return value

    def flag(self, field: str, default: bool = False) -> bool:
        value = self.any(field)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise wrong_type(self.name(field), "true or false", value)
        return value

    def maybe(self, field: str) -> bool | None:
        """True, false, or None where nothing is said."""
        return None if self.any(field) is None else self.flag(field)

    def integer(self, field: str, low: int, high: int) -> int | None:
        value = self.any(field)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong_type(self.name(field), "a whole number", value)
        return int(self._within(field, value, low, high))

    def number(self, field: str, low: float, high: float, default: float) -> float:
        value = self.any(field)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong_type(self.name(field), "a number", value)
        return float(self._within(field, value, low, high))

    def word(self, field: str, allowed: Sequence[str]) -> str | None:
        """One of a few words."""
        value = self.text(field)
        if value is not None and value not in allowed:
            raise out_of_range(self.name(field), repr(value[:_SHOWN]), " or ".join(map(repr, allowed)))
        return value

    def items(self, field: str, most: int) -> list[Any] | None:
        value = self.any(field)
        if value is None:
            return None
        if not isinstance(value, list):
            raise wrong_type(self.name(field), "an array", value)
        if len(value) > most:
            raise out_of_range(self.name(field), f"{len(value)} items", f"at most {most}")
        return value

    def inner(self, field: str) -> Fields | None:
        """The fields of an object in a field."""
        value = self.any(field)
        return None if value is None else Fields(value, f"{self.name(field)}.")

    def required_inner(self, field: str) -> Fields:
        return Fields(self.required(field), f"{self.name(field)}.")

    def only(self, field: str, *neutral: Any) -> None:
        """A field that this server cannot honour: it may be absent, null, or say what holds without it."""
        value = self.any(field)
        if value is not None and not any(_same(value, each) for each in neutral):
            also = "".join(f", or give {each!r}" for each in neutral[:1])
            raise ApiError(
                f"{self.name(field)!r} is not supported by this server; leave it out{also}",
                param=self.name(field),
                code="unsupported_parameter",
            )

    def finish(self) -> None:
        """Refuse the fields that nobody read."""
        unknown = sorted(set(self._values) - self._read)
        if unknown:
            names = ", ".join(repr(self.name(each)[:_SHOWN]) for each in unknown[:_LISTED])
            raise ApiError(
                f"unknown field {names}; leave it out",
                param=self.name(unknown[0])[:_SHOWN],
                code="unknown_parameter",
            )

    def _within(self, field: str, value: float, low: float, high: float) -> float:
        if not low <= value <= high:
            shown = str(value)[:_SHOWN] if isinstance(value, float) or abs(value) < 1 << 64 else "the number"
            raise out_of_range(self.name(field), shown, f"{low:,} to {high:,}")
        return value


def wrong_type(name: str, wanted: str, value: Any) -> ApiError:
    return ApiError(f"{name!r} must be {wanted}, not {_kind(value)}", param=name, code="invalid_type")


def out_of_range(name: str, value: str, allowed: str) -> ApiError:
    return ApiError(f"{name!r} is {value}; give {allowed}", param=name, code="invalid_value")


def _same(value: Any, other: Any) -> bool:
    """Equal and of one type, whole numbers and others being one."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, float) and not math.isfinite(value):
        return "infinity"
    kinds = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array"}
    return kinds.get(type(value), "an object")
