"""The rows of a comparison as one table, and what it says about targets of attention mass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from keyhole.cli.console import stdout

if TYPE_CHECKING:
    from keyhole.evaluation import Row

_COLUMNS = (
    *("method", "budget", "task", "accuracy", "tokens\nread", "mass\nread", "best\nfound"),
    *(
        "KV read\nper token",
        "KV on\ndevice",
        "on\nhost",
        "on\ndisk",
        "weights\nread",
        "prefill\ns",
        "decode\nms/token",
    ),
)
_UNITS, _STEP = ("KiB", "MiB", "GiB", "TiB"), 1024
_WORDS = 3  # columns of words, the others are numbers


def print_rows(rows: Sequence[Row], *, by_task: bool, notes: bool) -> None:
    """Print the mean over the tasks of each method and budget, or every task."""
    console = stdout()
    shown = list(rows) if by_task else [row for row in rows if row.is_mean]
    console.print(_table(shown))
    for row in shown if notes else []:
        if row.mass_reached is not None and row.is_mean:
            cases = f"{row.mass_reached:.1%} of cases (layer, KV head, step)"
            console.print(
                f"{row.method} {row.budget}: exact mass >= {row.mass_target:g} in {cases}, "
                f"reading {row.read_fraction:.1%} of tokens",
                highlight=False,
            )


def _table(rows: Sequence[Row]) -> Table:
    total = next(row.samples for row in rows if row.is_mean)
    title = f"{total} prompt{'s' * (total > 1)} of {rows[0].context} tokens"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title)
    for index, name in enumerate(_COLUMNS):
        table.add_column(name, justify="left" if index < _WORDS else "right", no_wrap=True)
    mixed = not all(row.is_mean for row in rows)
    for index, row in enumerate(rows):
        ends = index + 1 < len(rows) and rows[index + 1].method != row.method
        table.add_row(*_cells(row), end_section=ends, style="bold" if row.is_mean and mixed else "")
    return table


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.method,
        row.budget,
        row.task,
        f"{row.accuracy:.1%}",
        f"{row.read_fraction:.1%}",
        *("-" if share is None else f"{share:.1%}" for share in (row.mass_exact, row.recall)),
        amount(row.kv_bytes_read_per_token),
        *(amount(held) for held in (row.kv_bytes_device, row.kv_bytes_host, row.kv_bytes_disk)),
        f"{row.weights_read:.1%}",
        f"{row.prefill_s:.2f}",
        f"{row.decode_ms:.1f}",
    )


def amount(held: float) -> str:
    """Bytes in the unit that leaves one to four digits before the point."""
    if held < _STEP:
        return f"{held:.0f} B" if held else "0"
    power = min(int(math.log(held, _STEP)), len(_UNITS))
    return f"{held / _STEP**power:.1f} {_UNITS[power - 1]}"
