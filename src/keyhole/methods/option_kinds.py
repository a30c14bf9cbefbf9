"""Kinds of options: how a value is checked, what it is called in messages, and its JSON schema."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from keyhole.core.budget import BUDGET_SCHEMA, Budget
from keyhole.core.errors import SpecError
from keyhole.core.numbers import GREATEST, MOST_TOKENS, parse_bytes, shown


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of a method.

    Attributes:
        help: what it does.
        unit: of the number.
        optional: whether it may be None.
        words: words accepted instead of a number.
        renamed: values of earlier versions, and their current names.
    """

    help: str
    unit: str = ""
    optional: bool = False
    words: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()

    def read(self, method: str, name: str, value: Any) -> Any:
        """The value as the method holds it.

        Raises:
            SpecError: wrong type, or out of range.
        """
        if (self.optional and value is None) or (isinstance(value, str) and value in self.words):
            return value
        for old, new in self.renamed:
            if value == old:
                raise SpecError(f"{method}: {name}={old} is now {name}={new}")
        return self._read(method, name, value)

    def _read(self, method: str, name: str, value: Any) -> Any:
        raise NotImplementedError

    @property
    def allowed(self) -> str:
        """The values it takes, in words."""
        others = ", or ".join([*self.words, *(["none"] if self.optional else [])])
        return f"{self._allowed}, or {others}" if others else self._allowed

    @property
    def _allowed(self) -> str:
        raise NotImplementedError

    def schema(self, default: Any) -> dict[str, Any]:
        """A JSON schema of its values."""
        choices = [self._schema()]
        if self.words:
            choices.append({"enum": list(self.words)})
        if self.optional:
            choices.append({"type": "null"})
        kind = choices[0] if len(choices) == 1 else {"anyOf": choices}
        unit = {"x-unit": self.unit} if self.unit else {}
        return {"description": self.help, **kind, "default": _plain(default), **unit}

    def _schema(self) -> dict[str, Any]:
        raise NotImplementedError

    @property
    def beside(self) -> dict[str, Any]:
        """JSON schemas of keywords accepted instead of it, by keyword."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Integer(Option):
    """A whole number in [ge, le]."""

    ge: int
    le: int = MOST_TOKENS

    def _read(self, method: str, name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not self.ge <= value <= self.le:
            raise SpecError(
                f"{method}: {name}={shown(value)} is out of range; give a whole number, {self.allowed}"
            )
        return value

    @property
    def _allowed(self) -> str:
        if self.le == MOST_TOKENS:
            return f"at least {self.ge} and at most {self.le}"
        return f"{self.ge} to {self.le}"

    def _schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.ge, "maximum": self.le}


@dataclass(frozen=True, kw_only=True)
class Number(Option):
    """A finite number in [ge, le], or in [ge, lt)."""

    ge: float
    le: float | None = None
    lt: float | None = None

    def _read(self, method: str, name: str, value: Any) -> float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        # Integers are compared directly: they may be too large for a float.
        if not number or (isinstance(value, float) and not isfinite(value)) or not self._within(value):
            raise SpecError(f"{method}: {name}={shown(value)} is out of range; give a number, {self.allowed}")
        return value

    def _within(self, value: float) -> bool:
        return (
            value >= self.ge
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
            and abs(value) < GREATEST
        )

    @property
    def _allowed(self) -> str:
        if self.lt is not None:
            return f"at least {self.ge} and less than {self.lt}"
        return f"at least {self.ge}" if self.le is None else f"{self.ge} to {self.le}"

    def _schema(self) -> dict[str, Any]:
        bounds = {"maximum": self.le, "exclusiveMaximum": self.lt}
        given = {name: value for name, value in bounds.items() if value is not None}
        return {"type": "number", "minimum": self.ge, **given}


@dataclass(frozen=True, kw_only=True)
class Flag(Option):
    """True or false."""

    def _read(self, method: str, name: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise SpecError(f"{method}: {name}={shown(value)} is neither true nor false")
        return value

    @property
    def _allowed(self) -> str:
        return "true or false"

    def _schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


@dataclass(frozen=True, kw_only=True)
class Choice(Option):
    """One of a few values, words or numbers."""

    values: tuple[Any, ...]

    def _read(self, method: str, name: str, value: Any) -> Any:
        # By type too, for True equals 1.
        if not any(type(value) is type(each) and value == each for each in self.values):
            raise SpecError(f"{method}: {name}={shown(value)} is not one of {self._allowed}")
        return value

    @property
    def _allowed(self) -> str:
        return ", ".join(map(str, self.values))

    def _schema(self) -> dict[str, Any]:
        return {"enum": list(self.values)}


@dataclass(frozen=True, kw_only=True)
class Directory(Option):
    """The name of a directory."""

    def _read(self, method: str, name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise SpecError(f"{method}: {name}={shown(value)} is not the name of a directory")
        return value

    @property
    def _allowed(self) -> str:
        return "the name of a directory"

    def _schema(self) -> dict[str, Any]:
        return {"type": "string"}


@dataclass(frozen=True, kw_only=True)
class Bytes(Option):
    """A number of bytes, also as "64MB" or "1.5GiB"."""

    def _read(self, method: str, name: str, value: Any) -> int:
        return parse_bytes(f"{method}: {name}", value)

    @property
    def _allowed(self) -> str:
        return 'a number of bytes, "64MB" or "1GiB"'

    def _schema(self) -> dict[str, Any]:
        text = {"type": "string", "pattern": r"^\d+(\.\d+)?\s*[KMGT]?i?B?$"}
        return {"anyOf": [{"type": "integer", "minimum": 0}, text]}


@dataclass(frozen=True, kw_only=True)
class BudgetOption(Option):
    """A `Budget`: tokens or a fraction of the context, and where these are true one of mass or of error."""

    mass: bool = True
    error: bool = False
    refusal: str = ""

    def _read(self, method: str, name: str, value: Any) -> Budget:
        budget = Budget.parse(value)
        if budget.varies and not self.mass:
            raise SpecError(
                f"{method}: {name} of {budget} {self.refusal}; give tokens or a fraction of the context"
            )
        if budget.error is not None and not self.error:
            raise SpecError(
                f"{method}: {name} of {budget} needs an index that estimates each token, which "
                "oracle, pqcache and tokenselect have; give one of these, or tokens, a fraction of the "
                "context or mass"
            )
        return budget

    @property
    def _allowed(self) -> str:
        words = [", or mass=0.95"] * self.mass + [", or error=0.05"] * self.error
        return f"tokens (256) or a fraction of the context (0.1, 10%){''.join(words)}"

    def _schema(self) -> dict[str, Any]:
        return BUDGET_SCHEMA

    @property
    def beside(self) -> dict[str, Any]:
        share = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
        with_ = "With mass or error" if self.error else "With mass"
        mass = {"description": "Instead of budget: the fraction of attention mass to read.", **share}
        error = {
            "description": "Instead of budget: the relative error of attention's output, at 95% confidence, "
            "that as few tokens as possible are read for.",
            **share,
        }
        words = {
            "floor": {
                "description": f"{with_}: the fewest tokens to read.",
                "type": "integer",
                "minimum": 0,
            },
            "cap": {"description": f"{with_}: the largest fraction of the context to read.", **share},
        }
        errors = {"error": error} if self.error else {}
        return {"mass": mass, **errors, **words} if self.mass else {}


@dataclass(frozen=True, kw_only=True)
class Layers(Option):
    """Layers of the model, by number."""

    def _read(self, method: str, name: str, value: Any) -> tuple[int, ...]:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise SpecError(
                f"{method}: {name}={shown(value)} is not a list of layers; give one, such as (0, 1, 2, 14, "
                "22)"
            )
        number = Integer(help="", ge=0)
        return tuple(sorted({number.read(method, f"a layer of {name}", layer) for layer in value}))

    @property
    def _allowed(self) -> str:
        return "a list of layers"

    def _schema(self) -> dict[str, Any]:
        return {"type": "array", "items": {"type": "integer", "minimum": 0}}


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, Budget):
        return str(value) if value.varies else value.tokens or value.fraction
    return list(value) if isinstance(value, tuple) else value
