"""Under which conditions rows arose: what a reader needs to judge them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

from keyhole.bench.machine import describe
from keyhole.bench.result import Result
from keyhole.bench.timing import Evictor


def conditions(command: str, results: Sequence[Result], evictor: Evictor, rounds: int) -> dict[str, Any]:
    """Machine, versions, date, the command and the notes of its results."""
    said = [note for result in results for note in result.notes]
    return describe(evictor.device) | {
        "command": command,
        "date": date.today().isoformat(),
        "notes": [*dict.fromkeys(said), fairness(evictor, rounds)],
    }


def fairness(evictor: Evictor, rounds: int) -> str:
    """What was done so that times compare, and the bandwidth found."""
    megabytes, speed = evictor.nbytes >> 20, evictor.bandwidth / 1e6
    return (
        f"medians of {rounds} rounds in which all take turns; {megabytes} MiB are read before each run, "
        f"so that it starts with cold caches; that reading measured {speed:.1f} GB/s"
    )
