"""`keyhole compare --tasks kl`: what is written and said while it runs."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from keyhole.cli.asked import ALL, Asked, Found
from keyhole.cli.console import Report, stderr
from keyhole.cli.inputs import read_text, training_context
from keyhole.core.files import write_text
from keyhole.evaluation.candidates import DENSE, Candidate, candidates
from keyhole.evaluation.divergence import DivergenceRow, divergence, passages
from keyhole.evaluation.divergence.measure import Timing
from keyhole.evaluation.divergence.records import read_records, write_records
from keyhole.evaluation.divergence.settings import check_range
from keyhole.generation import Loaded

_EMBEDDED = "the embedded model"


class OwnText(NamedTuple):
    """A text of the user's, by the name of its file."""

    name: str
    text: str

    @classmethod
    def read(cls, path: Path) -> OwnText:
        return cls(path.stem, read_text(str(path)))


def measure(
    asked: Asked,
    sources: Sequence[Any],
    known: list[DivergenceRow],
    loaded: Loaded,
    report: Report,
    found: Found,
) -> None:
    """Measure, and write the rows after each method; the rows and seconds are added to `found`."""
    context = asked.context or training_context(loaded.model)
    check_range(loaded.model, context, asked.tokens)
    chosen = candidates(asked.methods, asked.budgets)
    told = _Told(asked, found, report, len(chosen))
    found.divergences = divergence(
        loaded.model,
        chosen,
        passages(sources, loaded.tokenizer, context, asked.tokens),
        context=context,
        tokens=asked.tokens,
        name=_name(asked.model),
        batch=asked.batch,
        exact_mass=asked.exact_mass,
        known=known,
        found=told.found,
        refused=told.refused if ALL in asked.methods else None,
        timed=told.timed,
        progress=told.progress,
    )


def _name(model: str | None) -> str:
    """What a table calls a model: never a whole path of this machine."""
    if model is None:
        return _EMBEDDED
    path = Path(model).expanduser()
    return "/".join(path.resolve().parts[-2:]) if path.exists() else model


class _Told:
    """Takes note of what a measurement says: files, progress, time left."""

    def __init__(self, asked: Asked, found: Found, report: Report, candidates: int) -> None:
        self._asked, self._found, self._report = asked, found, report
        resumed = asked.resume and asked.json_file is not None and asked.json_file.exists()
        self._before = read_records(asked.json_file) if resumed and asked.json_file else []
        self._console = stderr()
        self._done, self._total = 0, 0
        self._clock = _Clock(candidates)

    def found(self, rows: list[DivergenceRow]) -> None:
        if self._asked.json_file is not None:
            self._found.divergences = rows
            write_records(self._asked.json_file, self._others(rows) + self._found.records())

    def _others(self, rows: list[DivergenceRow]) -> list[dict[str, Any]]:
        """What the file held before, without what is measured now."""
        mine = {(row.settings.key, row.method, row.budget) for row in rows}

        def other(record: dict[str, Any]) -> bool:
            if record["task"] != "kl":
                return True
            row = DivergenceRow.of(record)
            return (row.settings.key, row.method, row.budget) not in mine

        return [record for record in self._before if other(record)]

    def refused(self, candidate: Candidate, error: ValueError) -> None:
        self._console.print(
            f"left out: {candidate.method} {candidate.budget}: {error}", highlight=False, markup=False
        )

    def timed(self, timing: Timing) -> None:
        self._found.timings.append(timing)
        self._clock.end(dense=timing.method == DENSE.method)
        if self._asked.times is not None:
            lines = (json.dumps(timing._asdict()) for timing in self._found.timings)
            write_text(self._asked.times, "".join(f"{line}\n" for line in lines))
        if not self._asked.quiet and not self._console.is_terminal:
            self._console.print(self._line_of(timing), highlight=False, markup=False)

    def progress(self, doing: str, done: int, total: int) -> None:
        self._report(doing, done, total)
        self._done, self._total = done, total
        self._clock.begin()

    def _line_of(self, timing: Timing) -> str:
        left = self._clock.left(self._total - self._done - 1)
        step = sum(timing.steps) / len(timing.steps)
        return (
            f"{self._done + 1}/{self._total} {timing.method} {timing.budget}: {timing.texts} texts, "
            f"prompt and index {timing.prefill:.1f} s, a step {1000 * step:.0f} ms; "
            f"about {left / 60:.0f} min left"
        )


class _Clock:
    """Seconds that are left, by the mean of what was measured; a batch's prefix counts with its dense row.

    Args:
        candidates: measured with each batch, the dense one among them.
    """

    def __init__(self, candidates: int) -> None:
        self._candidates = candidates
        self._begun = time.monotonic()
        self._took: dict[bool, list[float]] = {True: [], False: []}  # of dense rows, and of others

    def begin(self) -> None:
        self._begun = time.monotonic()

    def end(self, *, dense: bool) -> None:
        self._took[dense].append(time.monotonic() - self._begun)

    def left(self, rows: int) -> float:
        """Seconds that so many rows will take; until a method was measured, all as long as dense ones."""
        batches = rows // self._candidates
        prefix, others = self._mean(True), self._mean(False) or self._mean(True)
        return batches * prefix + (rows - batches) * others

    def _mean(self, dense: bool) -> float:
        took = self._took[dense]
        return sum(took) / len(took) if took else 0.0
