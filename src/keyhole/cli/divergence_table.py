"""Rows of divergences as tables: one for each model, context and set of texts; seconds apart."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from keyhole.cli.console import stdout
from keyhole.cli.table import amount

if TYPE_CHECKING:
    from keyhole.evaluation.divergence import DivergenceRow, Settings
    from keyhole.evaluation.divergence.measure import Timing

_COLUMNS = (
    *("method", "budget", "KL\nmean", "95%\ninterval", "\nmedian", "\nworst", "same\ntop-1"),
    *("ppl\nratio", "read per\ntoken", "\nheld"),
)
_WORDS = 2  # columns of words, the others are numbers
_LEAST = 5e-5  # of what is shown with four digits


def print_divergences(rows: Sequence[DivergenceRow], timings: Sequence[Timing], *, notes: bool) -> None:
    """Print a table for all rows of the same settings, and what they say about targets of mass."""
    console = stdout()
    for _, group in groupby(rows, key=lambda row: row.settings.key):
        mine = list(group)
        whole = [row for row in mine if row.complete]
        if whole:
            console.print(_table(whole), highlight=False)
        if notes:
            _print_notes(console, mine, whole)
    if timings and notes:
        console.print(_times(timings), highlight=False)


def _table(rows: Sequence[DivergenceRow]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=_title(rows[0].settings))
    for index, name in enumerate(_COLUMNS):
        table.add_column(
            name, justify="left" if index < _WORDS else "right", no_wrap=index > 0, overflow="fold"
        )
    for index, row in enumerate(rows):
        ends = index + 1 < len(rows) and rows[index + 1].method != row.method
        table.add_row(*_cells(row), end_section=ends)
    return table


def _title(settings: Settings) -> str:
    texts = len(settings.texts)
    return (
        f"KL(full attention || method) in nats, {settings.label}\n{texts} text{'s' * (texts > 1)} x "
        f"{settings.tokens} tokens after {settings.context:,}"
    )


def _cells(row: DivergenceRow) -> tuple[str, ...]:
    found = row.summary
    between = found.kl_mean_interval
    return (
        row.method,
        row.budget,
        _nats(found.kl_mean),
        "-" if between is None else "-".join(map(_nats, between)),
        _nats(found.kl_median),
        f"{found.kl_worst:.2f}",
        f"{found.top1:.1%}",
        f"{found.perplexity_ratio:.3f}",
        amount(found.kv_bytes_read_per_token),
        amount(found.kv_bytes_device + found.kv_bytes_host + found.kv_bytes_disk),
    )


def _nats(value: float) -> str:
    return (
        "<.0001"
        if 0 < value < _LEAST
        else f"{value:.4f}".replace("0.", ".", 1)
        if value < 1
        else f"{value:.3f}"
    )


def _print_notes(console: Console, rows: Sequence[DivergenceRow], whole: Sequence[DivergenceRow]) -> None:
    dense = next((row for row in whole if row.method == "dense"), None)
    if dense is not None:
        console.print(
            f"Perplexity of full attention: {dense.summary.perplexity:.3f}. Intervals: bootstrap over texts.",
            highlight=False,
        )
    for row in whole:
        if row.mass_target is not None and row.summary.mass_reached is not None:
            console.print(_mass(row, whole), highlight=False, markup=False)
        if row.error_target is not None and row.summary.error_kept is not None:
            console.print(_error(row), highlight=False, markup=False)
    unfinished = len(rows) - len(whole)
    if unfinished:
        console.print(f"{unfinished} unfinished rows are not shown; --resume finishes them.", highlight=False)


def _mass(row: DivergenceRow, rows: Sequence[DivergenceRow]) -> str:
    found = row.summary
    oracle = next((r for r in rows if r.method == "oracle" and r.budget == row.budget), None)
    beside = "" if oracle is None or oracle is row else f" (oracle {oracle.summary.read_fraction:.1%})"
    return (
        f"{row.method} {row.budget}: exact mass >= {row.mass_target:g} in {found.mass_reached:.1%} of cases "
        f"(layer, KV head, step); mean {found.mass_exact:.3f}, estimated {found.mass_estimated:.3f}; "
        f"reads {found.read_fraction:.1%} of tokens{beside}"
    )


def _error(row: DivergenceRow) -> str:
    found = row.summary
    estimated = "-" if found.error_estimated is None else f"{found.error_estimated:.3f}"
    return (
        f"{row.method} {row.budget}: exact error <= {row.error_target:g} in {found.error_kept:.1%} of cases "
        f"(layer, query head, step); mean {found.error_exact:.3f}, bound {estimated}; "
        f"reads {found.read_fraction:.1%} of tokens"
    )


def _times(timings: Sequence[Timing]) -> Table:
    """Seconds of this run: they depend on the machine, and are no part of the rows."""
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title="Time on this machine, of the batches measured now"
    )
    for name in ("method", "budget", "texts", "prompt and\nindex, s", "step of\na batch, ms"):
        table.add_column(name, justify="right" if name not in ("method", "budget") else "left")
    for (method, budget), group in groupby(timings, key=lambda timing: timing[:2]):
        mine = list(group)
        steps = [step for timing in mine for step in timing.steps]
        texts, prompt = sum(timing.texts for timing in mine), sum(timing.prefill for timing in mine)
        step = 1000 * sum(steps) / len(steps)
        table.add_row(method, budget, str(texts), f"{prompt:.1f}", f"{step:.0f}")
    return table
