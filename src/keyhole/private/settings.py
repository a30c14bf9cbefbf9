"""What is public of a run: the method's options as plain numbers, and what secure computation asks of
them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any

METHODS = ("dense", "streamingllm", "mpcache")
RANKINGS = ("pairs", "quick")
GATHERS = ("auto", "rows", "logits")


class SettingsError(ValueError):
    """Settings that cannot be computed securely, with the way out."""


@dataclass(frozen=True)
class Amount:
    """So many tokens, or a fraction of the context."""

    tokens: int | None = None
    fraction: float | None = None

    def __post_init__(self) -> None:
        if (self.tokens is None) == (self.fraction is None):
            raise SettingsError("an amount is tokens or a fraction of the context; give one of both")
        if self.tokens is not None and self.tokens < 1:
            raise SettingsError(f"an amount of {self.tokens} tokens is out of range; give at least 1")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise SettingsError(f"a fraction of {self.fraction} is out of range; give one in (0, 1]")

    def of(self, context: int) -> int:
        """Tokens of a context of so many."""
        if self.tokens is not None:
            return self.tokens
        assert self.fraction is not None
        return max(1, round(self.fraction * context))


@dataclass(frozen=True)
class Settings:
    """A method as secure computation sees it. The names are those of the method's own options.

    Attributes:
        keep: tokens kept at the prompt's end.
        budget: tokens read per step beside sinks and window.
        ranking: "pairs" compares all pairs at once and opens nothing; "quick" is SPU's quick-select, which
            opens
            comparisons of shuffled scores.
        gather: how a selection is read: "rows" copies keys and values of chosen clusters; "logits"
            multiplies all
            kept keys and copies the chosen logits, and puts the weights back in place for the values;
            "auto" takes
            the one that the cost model says sends less.
    """

    method: str = "dense"
    sinks: int = 16
    window: int = 64
    keep: Amount = field(default_factory=lambda: Amount(fraction=0.4))
    budget: Amount = field(default_factory=lambda: Amount(fraction=0.1))
    per_head: bool = False
    kernel: int = 7
    share: bool = False
    fine: int = 8
    coarse: int = 16
    survivors: float = 1.0
    alpha: float = 0.6
    dense_below: int = 0
    ranking: str = "pairs"
    gather: str = "auto"

    def __post_init__(self) -> None:
        _check_choice("method", self.method, METHODS)
        _check_choice("ranking", self.ranking, RANKINGS)
        _check_choice("gather", self.gather, GATHERS)
        if self.method == "mpcache" and self.selects:
            self._check_clusters()

    def _check_clusters(self) -> None:
        unit = self.fine if self.survivors >= 1 else self.coarse
        if self.coarse % self.fine:
            raise SettingsError(f"coarse={self.coarse} is not a multiple of fine={self.fine}")
        if self.sinks % unit or self.sinks < unit:
            raise SettingsError(
                f"sinks={self.sinks} is not a multiple of clusters of {unit} tokens, so the number "
                f"of tokens of a "
                f"cluster would be secret; give {math.ceil(max(self.sinks, 1) / unit) * unit}"
            )
        if self.window < self.coarse:
            raise SettingsError(
                f"window={self.window} is less than coarse={self.coarse}, so incomplete clusters "
                f"would compete; "
                f"give at least {self.coarse}"
            )

    @property
    def selects(self) -> bool:
        """Whether a step may read a selection of what is kept."""
        return self.budget.fraction != 1.0

    @property
    def evicts(self) -> bool:
        """Whether the prompt's end evicts by attention."""
        return self.method == "mpcache" and self.keep.fraction != 1.0

    def leads(self, layer: int) -> bool:
        """Whether a layer selects and evicts for itself; else it follows the one before."""
        return not self.share or layer < 2 or layer % 2 == 0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of_json(cls, data: dict[str, Any]) -> Settings:
        """Take over what `as_json` made.

        Raises:
            SettingsError: an option that is not known, missing, or out of range.
        """
        names = {option.name for option in fields(cls)}
        if set(data) != names:
            odd = sorted(names ^ set(data))
            raise SettingsError(f"settings with other options than this version has: {', '.join(odd)}")
        amounts: dict[str, Any] = {name: Amount(**data[name]) for name in ("keep", "budget")}
        return cls(**{**data, **amounts})


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SettingsError(f"{name}={value!r} is not one of {', '.join(allowed)}")
