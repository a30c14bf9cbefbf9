"""How much of the cache a query may read: tokens, a share of the context or of mass, or up to an error."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from keyhole.core.errors import SpecError
from keyhole.core.numbers import MOST_TOKENS, shown

_FLOOR = 16
_FORMS = "give tokens (256), a share of the context (0.1 or 10%), mass=0.95 or error=0.05"

# What `Budget.parse` reads, as a JSON schema.
BUDGET_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "integer", "minimum": 1, "maximum": MOST_TOKENS},
        {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        {"type": "string", "pattern": r"^(\d+|0?\.\d+|1\.0|\d+(\.\d+)?%|(mass|error)=\S+)$"},
    ]
}


@dataclass(frozen=True)
class Budget:
    """Tokens read beside the sinks and the window, which never count.

    Exactly one of four is set:

    - `tokens`: so many tokens;
    - `fraction`: that share, in (0, 1], of the current context, so it grows while generating;
    - `mass`: the fewest tokens whose estimated share of the softmax reaches it, in (0, 1], but no
      fewer than `floor` and no more than the share `cap` of the context;
    - `error`: as few tokens as keep the error of attention's output, relative to its length and estimated
      at 95% confidence, within it, in (0, 1], between `floor` and `cap` likewise.
    """

    tokens: int | None = None
    fraction: float | None = None
    mass: float | None = None
    error: float | None = None
    floor: int = _FLOOR
    cap: float = 1.0

    def __post_init__(self) -> None:
        if [self.tokens, self.fraction, self.mass, self.error].count(None) != 3:
            raise SpecError("give exactly one of tokens, fraction, mass and error")
        if not self.varies and (self.floor, self.cap) != (_FLOOR, 1.0):
            raise SpecError("floor and cap need a budget of mass or error; leave them out, or give one")
        _check_count("budget", self.tokens, 1)
        _check_share("budget", self.fraction)
        _check_share("mass", self.mass)
        _check_share("error", self.error)
        _check_share("cap", self.cap)
        _check_count("floor", self.floor, 0)

    @classmethod
    def parse(cls, value: Budget | int | float | str) -> Budget:
        """Read `256` (tokens), `0.1`, `10%` or `1.0` (share of the context), `mass=0.95` or `error=0.05`.

        Raises:
            SpecError: not a budget, or out of range.
        """
        if isinstance(value, Budget):
            return value
        if isinstance(value, str):
            return cls._parse_text(value.strip())
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SpecError(f"budget {shown(value)} is not understood; {_FORMS}")
        return cls(tokens=value) if isinstance(value, int) else cls(fraction=value)

    @classmethod
    def _parse_text(cls, text: str) -> Budget:
        number, percent, named = (
            re.fullmatch(pattern, text)
            for pattern in (r"[+-]?\d+", r"(\d+(?:\.\d+)?)%", r"(mass|error)=(\S+)")
        )
        try:
            if named:
                share = float(named[2])
                return cls(mass=share) if named[1] == "mass" else cls(error=share)
            if percent:
                return cls(fraction=float(percent[1]) / 100)
            return cls(tokens=int(text)) if number else cls(fraction=float(text))
        except SpecError:
            raise
        except ValueError as error:
            raise SpecError(f"budget {shown(text)} is not understood; {_FORMS}") from error

    @property
    def varies(self) -> bool:
        """Whether a step finds out how many tokens it reads."""
        return self.mass is not None or self.error is not None

    def limit(self, context: int) -> int:
        """The most tokens it allows at a context of so many tokens; at least one."""
        if self.tokens is not None:
            return self.tokens
        share = self.cap if self.fraction is None else self.fraction
        return max(1, round(share * context))

    def __str__(self) -> str:
        if self.tokens is not None:
            return str(self.tokens)
        if self.fraction is not None:
            # Always with a point: 1.0 is the whole context, 1 would be one token.
            return str(float(self.fraction))
        floor = "" if self.floor == _FLOOR else f", floor={self.floor}"
        cap = "" if self.cap == 1.0 else f", cap={self.cap}"
        target = f"error={self.error}" if self.mass is None else f"mass={self.mass}"
        return f"{target}{floor}{cap}"


def _check_count(what: str, value: int | None, low: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise SpecError(
            f"{what} {shown(value)} is not a number of tokens; give a whole number, at least {low}"
        )
    if not low <= value <= MOST_TOKENS:
        raise SpecError(
            f"{what} of {shown(value)} tokens is out of range; give at least {low} and at most {MOST_TOKENS}"
        )


def _check_share(what: str, value: float | None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SpecError(f"{what} {shown(value)} is not a number; give a share in (0, 1]")
    if not 0 < value <= 1:
        raise SpecError(f"{what} {shown(value)} is out of range; give a share in (0, 1]")
