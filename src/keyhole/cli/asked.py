"""What `keyhole compare` is asked for, and what it finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keyhole.evaluation import Row
    from keyhole.evaluation.divergence import DivergenceRow
    from keyhole.evaluation.divergence.measure import Timing

KL, ALL = "kl", "all"


@dataclass(frozen=True)
class Asked:
    """The options of the command, by their names."""

    model: str | None
    methods: list[str]
    budgets: list[str]
    tasks: list[str]
    context: int | None
    samples: int
    seed: int
    haystack: Path | None
    tokens: int
    texts: int
    own_texts: list[Path]
    batch: int | None
    exact_mass: bool
    json_file: Path | None
    resume: bool
    read_from: list[Path]
    times: Path | None
    plot: Path | None
    threads: int | None
    quiet: bool


@dataclass
class Found:
    """Rows of the tasks, rows of divergences, and what the latter took."""

    rows: list[Row] = field(default_factory=list)
    divergences: list[DivergenceRow] = field(default_factory=list)
    timings: list[Timing] = field(default_factory=list)

    def records(self) -> list[dict[str, Any]]:
        """All rows as the JSON file holds them."""
        return [row.record() for row in (*self.rows, *self.divergences)]
