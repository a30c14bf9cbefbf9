"""Where output goes: results to stdout, everything else to stderr."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_PIPED_WIDTH = 160  # rich assumes 80 columns for a pipe, which would break the lines of a table


def stdout() -> Console:
    """The console for results: as wide as the terminal, as COLUMNS says, or wide enough for a table."""
    console = Console()
    given = console.is_terminal or os.environ.get("COLUMNS")
    return console if given else Console(width=_PIPED_WIDTH)


def stderr() -> Console:
    return Console(stderr=True, soft_wrap=True)


class Report(Protocol):
    """Called with the progress of a job: what is being done, units done, units in all where known."""

    def __call__(self, doing: str, done: float, total: float | None) -> None: ...


@contextmanager
def progress(quiet: bool) -> Iterator[Report]:
    """A progress bar on stderr; none if quiet, or if stderr is not a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    hidden = quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, refresh_per_second=4, disable=hidden) as bars:
        task = bars.add_task("", total=None)

        def report(doing: str, done: float, total: float | None) -> None:
            bars.update(task, description=doing, completed=done, total=total)

        yield report
