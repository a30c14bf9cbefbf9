"""How every `keyhole bench` command measures, prints and writes."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from keyhole.bench.result import Result
    from keyhole.tuning.timing import CacheFlusher

_OUTPUTS = ("json_file", "plot", "quiet")


@dataclass(frozen=True)
class Run:
    """How to measure and where results go."""

    context: typer.Context
    rounds: int
    threads: int | None
    json_file: Path | None
    quiet: bool

    def __call__(self, measure: Callable[[CacheFlusher], list[Result]]) -> None:
        from keyhole.bench.conditions import conditions
        from keyhole.bench.rows import write_rows
        from keyhole.bench.tables import table
        from keyhole.cli.console import stderr, stdout
        from keyhole.cli.outputs import check_writable
        from keyhole.tuning.timing import CacheFlusher, using_threads

        check_writable(self.json_file, "--json")
        with using_threads(self.threads or 0):
            flusher = CacheFlusher()
            results = measure(flusher)
            known = conditions(command_line(self.context), results, flusher, self.rounds)
        for result in results:
            stdout().print(table(result))
        for note in [] if self.quiet else known["notes"]:
            stderr().print(f"- {note}", highlight=False, markup=False)
        if self.json_file is not None:
            write_rows(self.json_file, [row for result in results for row in result.rows], known)


def command_line(context: typer.Context) -> str:
    """The command line that was given, without what does not change the figures."""
    words = ["keyhole", "bench", context.command.name or ""]
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is None or source.name != "COMMANDLINE" or parameter.name in _OUTPUTS:
            continue
        value = context.params[parameter.name or ""]
        for each in value if isinstance(value, list) else [value]:
            words += [parameter.opts[0], str(each)]
    return shlex.join(words)
