"""Figures as a table: for the terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import NamedTuple

from rich import box
from rich.table import Table

from keyhole.bench.against.figures import Figure, ratios

_NOISY = 1.5  # median over best from which a figure is called noisy
COLUMNS = ("tokens", "engine", "prompt, s", "step, ms", "best", "mean", "peak, MiB")


class Line(NamedTuple):
    """The cells of one figure, and of its ratios to the other engines in their order."""

    cells: tuple[str, ...]
    ratios: tuple[str, ...]


def others(figures: Sequence[Figure]) -> list[str]:
    """The engines that Keyhole is compared with."""
    return list(dict.fromkeys(figure.engine for figure in figures if not figure.keyhole))


def lines(figures: Sequence[Figure]) -> list[Line]:
    """One for each figure, by length; times of others over Keyhole's: of steps, and of prompts."""
    pairs = {(ours, other.engine): other for ours, other in ratios(figures)}
    found = []
    for figure in sorted(figures, key=lambda figure: figure.tokens):
        compared = (pairs.get((figure, name)) for name in others(figures))
        found.append(Line(_cells(figure), tuple(_ratio(figure, other) for other in compared)))
    return found


def table(figures: Sequence[Figure], title: str) -> Table:
    """As the terminal shows them."""
    drawn = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in (*COLUMNS, *(f"{name} / this" for name in others(figures))):
        drawn.add_column(heading, justify="left" if heading == "engine" else "right")
    for line in lines(figures):
        drawn.add_row(*line.cells, *line.ratios)
    return drawn


def markdown(figures: Sequence[Figure]) -> str:
    """As a page shows them."""
    headings = [*COLUMNS, *(f"{name} / this" for name in others(figures))]
    rules = ["---" if heading == "engine" else "---:" for heading in headings]
    rows = [headings, rules]
    for line in lines(figures):
        cells = [*line.cells, *line.ratios]
        cells[1] = f"`{cells[1]}`"
        rows.append(cells)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def noise(figures: Sequence[Figure]) -> list[str]:
    """A warning where medians are so far above the best times that something else was running."""
    worst = max(figure.step / min(figure.step_ms) for figure in figures)
    if worst < _NOISY:
        return []
    return [f"NOISY: a median is {worst:.1f} times the best time; measure again when nothing else is running"]


def _cells(figure: Figure) -> tuple[str, ...]:
    return (
        f"{figure.tokens:,}" + (" (synthetic)" if figure.synthetic else ""),
        figure.engine,
        "" if figure.prompt_seconds is None else f"{figure.prompt_seconds:.2f}",
        f"{figure.step:.2f}",
        f"{min(figure.step_ms):.2f}",
        f"{mean(figure.step_ms):.2f}",
        f"{figure.peak / 2**20:,.0f}",
    )


def _ratio(ours: Figure, other: Figure | None) -> str:
    if other is None:
        return ""
    steps = f"step {other.step / ours.step:.2f}x"
    if ours.prompt_seconds is None or other.prompt_seconds is None:
        return steps
    return f"{steps}, prompt {other.prompt_seconds / ours.prompt_seconds:.2f}x"
