"""The scores of a benchmark as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from keyhole.cli.console import stdout
from keyhole.cli.table import amount

if TYPE_CHECKING:
    from keyhole.evaluation.benchmarks import Line
    from keyhole.evaluation.benchmarks.rowfile import Row

_WORDS = ("method", "task", "part")
_NUMBERS = ("n", "refused", "cut", "score", "tokens\nread", "KV read\nper token", "held", "prompt\ntokens")
_TIMES = ("prompt\ns", "decode\nms/token")


def print_lines(rows: Sequence[Row], title: str, *, is_grid: bool) -> None:
    """Print each method's tasks with their partitions; the cells of a grid are left to its picture."""
    from keyhole.evaluation.benchmarks.summary import ALL, MEAN, summarise

    lines = [line for line in summarise(rows) if line.group == ALL or not is_grid]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title)
    for name in (*_WORDS, *_NUMBERS, *_TIMES):
        table.add_column(name, justify="left" if name in _WORDS else "right", no_wrap=True)
    for index, line in enumerate(lines):
        ends = index + 1 < len(lines) and lines[index + 1].method != line.method
        table.add_row(*_cells(line), end_section=ends, style="bold" if line.task == MEAN else "")
    stdout().print(table)


def _cells(line: Line) -> tuple[str, ...]:
    held = line.bytes_device + line.bytes_host + line.bytes_disk
    return (
        line.method,
        line.task,
        line.group,
        f"{line.answers}",
        f"{line.refused}",
        f"{line.cut}",
        "-" if line.score is None else f"{line.score:.2f}",
        "-" if line.read_fraction is None else f"{line.read_fraction:.1%}",
        "-" if line.bytes_read_per_token is None else amount(line.bytes_read_per_token),
        amount(held),
        f"{line.prompt_tokens:,.0f}",
        f"{line.prompt_seconds:.2f}",
        "-" if line.decode_ms is None else f"{line.decode_ms:.1f}",
    )
