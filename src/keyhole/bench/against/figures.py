"""What was measured of each engine at each length, and files of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from keyhole.core.files import write_text


@dataclass(frozen=True)
class Figure:
    """One engine at one length.

    Attributes:
        engine: as in the command; Keyhole's are `keyhole METHOD`.
        keyhole: whether Keyhole computes.
        tokens: in the cache before the first step that is counted.
        synthetic: whether they were put there, and not computed from a prompt.
        prompt_seconds: until the first token of an answer; None where they are synthetic.
        step_ms: milliseconds of every step that is counted, in order.
        loaded: bytes in memory before the first token.
        peak: bytes at most while a prompt was computed and steps were taken.
    """

    engine: str
    keyhole: bool
    tokens: int
    synthetic: bool
    prompt_seconds: float | None
    step_ms: tuple[float, ...]
    loaded: int
    peak: int

    @property
    def step(self) -> float:
        """The median step in milliseconds."""
        return median(self.step_ms)


class Measured(NamedTuple):
    """All figures of one run, and under which conditions they arose."""

    figures: list[Figure]
    conditions: dict[str, Any]


_KEYS = {field.name for field in fields(Figure)}


def write_figures(path: Path, measured: Measured) -> None:
    """Write them as one JSON file."""
    content = {"conditions": measured.conditions, "figures": [asdict(one) for one in measured.figures]}
    write_text(path, json.dumps(content, indent=1))


def read_figures(path: Path) -> Measured:
    """Figures as `write_figures` wrote them.

    Raises:
        ValueError: no such file, or not one of figures.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        rows = held["figures"]
        if any(set(row) != _KEYS for row in rows):
            raise KeyError("other columns")
        figures = [Figure(**row | {"step_ms": tuple(row["step_ms"])}) for row in rows]
        return Measured(figures, dict(held["conditions"]))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} does not hold figures; make it with `keyhole bench against --json`"
        ) from error


def ratios(figures: Sequence[Figure]) -> list[tuple[Figure, Figure]]:
    """Each of Keyhole's figures with each other engine's at the same length."""
    ours = [one for one in figures if one.keyhole]
    return [
        (one, other) for one in ours for other in figures if not other.keyhole and other.tokens == one.tokens
    ]
