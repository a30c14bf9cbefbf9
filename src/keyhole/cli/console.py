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
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

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


class ReadingReport:
    """The progress of reading a document, in tokens, until it is to `end`."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._task = bars.add_task("", total=None)
        self._doing = ""

    def __call__(self, doing: str, done: float, total: float | None) -> None:
        if doing != self._doing:
            self._doing = doing
            self._bars.reset(self._task)
        self._bars.update(self._task, description=doing, completed=done, total=total)

    def end(self) -> None:
        """Take the bar away."""
        self._bars.stop()


class _Speed(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} tokens/s" if task.speed else "")


@contextmanager
def reading_progress(quiet: bool) -> Iterator[ReadingReport]:
    """A progress bar on stderr with time left and tokens per second; none if quiet, or without a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        _Speed(),
    )
    hidden = quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, refresh_per_second=4, disable=hidden) as bars:
        yield ReadingReport(bars)
