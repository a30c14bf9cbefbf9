"""How much of the cache a query may read: tokens, a share of the context, or a share of attention mass."""

from __future__ import annotations

import re
from dataclasses import dataclass

from keyhole.errors import SpecError

_FLOOR = 16


@dataclass(frozen=True)
class Budget:
    """Tokens read beside the sinks and the window, which never count.

    Exactly one of three is set:

    - `tokens`: so many tokens;
    - `fraction`: that share, in (0, 1], of the current context, so it grows while generating;
    - `mass`: the fewest tokens whose estimated share of the softmax reaches it, in (0, 1], but no
      fewer than `floor` and no more than the share `cap` of the context.
    """

    tokens: int | None = None
    fraction: float | None = None
    mass: float | None = None
    floor: int = _FLOOR
    cap: float = 1.0

    def __post_init__(self) -> None:
        if [self.tokens, self.fraction, self.mass].count(None) != 2:
            raise SpecError("a budget is one of tokens, fraction or mass; exactly one must be given")
        if self.tokens is not None and self.tokens < 1:
            raise SpecError(f"budget of {self.tokens} tokens is out of range; give at least 1")
        _check_share("budget fraction", self.fraction)
        _check_share("mass", self.mass)
        _check_share("cap", self.cap)
        if self.floor < 0:
            raise SpecError(f"floor of {self.floor} tokens is out of range; give at least 0")

    @classmethod
    def parse(cls, value: Budget | int | float | str) -> Budget:
        """Read `256` (tokens), `0.1`, `10%` or `1.0` (share of the context) or `mass=0.95`.

        Raises:
            SpecError: not a budget, or out of range.
        """
        if isinstance(value, Budget):
            return value
        if isinstance(value, bool):
            raise SpecError(f"budget {value!r} is not a number")
        if isinstance(value, int):
            return cls(tokens=value)
        if isinstance(value, float):
            return cls(fraction=value)
        return cls._parse_text(value.strip())

    @classmethod
    def _parse_text(cls, text: str) -> Budget:
        number, percent, mass = (
            re.fullmatch(pattern, text) for pattern in (r"[+-]?\d+", r"(\d+(?:\.\d+)?)%", r"mass=(\S+)")
        )
        try:
            if mass:
                return cls(mass=float(mass[1]))
            if percent:
                return cls(fraction=float(percent[1]) / 100)
            return cls(tokens=int(text)) if number else cls(fraction=float(text))
        except SpecError:
            raise
        except ValueError as error:
            raise SpecError(
                f"budget {text!r} is not understood; give tokens (256), a share (0.1 or 10%) or mass=0.95"
            ) from error

    def limit(self, context: int) -> int:
        """The most tokens it allows at a context of so many tokens; at least one."""
        if self.tokens is not None:
            return self.tokens
        share = self.cap if self.fraction is None else self.fraction
        return max(1, round(share * context))

    def __str__(self) -> str:
        if self.tokens is not None:
            return str(self.tokens)
        return f"mass={self.mass:g}" if self.mass is not None else f"{self.fraction:g}"


def _check_share(what: str, value: float | None) -> None:
    if value is not None and not 0 < value <= 1:
        raise SpecError(f"{what} {value:g} is out of range; give a share in (0, 1]")
