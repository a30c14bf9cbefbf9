"""Under which conditions rows arose: what a reader needs to judge them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any

from keyhole.bench.result import Result
from keyhole.tuning.machine import describe
from keyhole.tuning.timing import CacheFlusher


def conditions(command: str, results: Sequence[Result], flusher: CacheFlusher, rounds: int) -> dict[str, Any]:
    """Machine, versions, date, the command and the notes of its results."""
    said = [note for result in results for note in result.notes]
    return describe(flusher.device) | {
        "command": command,
        "date": date.today().isoformat(),
        "notes": [*dict.fromkeys(said), fairness(flusher, rounds)],
    }


def fairness(flusher: CacheFlusher, rounds: int) -> str:
    """What was done so that times compare, and the bandwidth found."""
    megabytes, speed = flusher.nbytes >> 20, flusher.bandwidth / 1e6
    return (
        f"medians of {rounds} rounds in which all take turns; {megabytes} MiB are read before each run, "
        f"so that it starts with cold caches; that reading measured {speed:.1f} GB/s"
    )
