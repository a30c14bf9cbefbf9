"""The picture of a grid: scores by length and depth, one panel for each method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from keyhole.evaluation.benchmarks.rowfile import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS, _DARK = "viridis", 60  # told apart by the colour-blind; scores below have dark cells
_INK = "#333333"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the rows that have a length and a depth; a cell without an answer stays white.

    Raises:
        ValueError: no row has both.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    placed = [row for row in rows if {"length", "depth"} <= row.groups.keys()]
    if not placed:
        raise ValueError("there is nothing to draw: no task here has a length and a depth")
    methods = list(dict.fromkeys(row.method for row in placed))
    figure = Figure(figsize=(7, 0.9 + 2.6 * len(methods)), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(methods), 1, squeeze=False)[:, 0]
    for axes, method in zip(panels, methods, strict=True):
        image = _panel(axes, [row for row in placed if row.method == method])
        axes.set_title(method, loc="left", fontsize=10, color=_INK)
    figure.colorbar(image, ax=list(panels), label="score (%)")
    figure.savefig(path)


def _panel(axes: Axes, rows: Sequence[Row]):
    lengths, depths = (sorted({int(row.groups[name]) for row in rows}) for name in ("length", "depth"))
    scores = cells(rows, lengths, depths)
    image = axes.imshow(scores, aspect="auto", vmin=0, vmax=100, cmap=_COLOURS)
    axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
    axes.set_yticks(range(len(depths)), [f"{depth}%" for depth in depths])
    axes.set_xlabel("tokens of the prompt", color=_INK)
    axes.set_ylabel("depth of the needle", color=_INK)
    axes.tick_params(colors=_INK, labelsize=8)
    for x, y in ((x, y) for x in range(len(lengths)) for y in range(len(depths))):
        if scores[y][x] == scores[y][x]:  # not NaN
            ink = "white" if scores[y][x] < _DARK else _INK
            axes.text(x, y, f"{scores[y][x]:.0f}", ha="center", va="center", fontsize=8, color=ink)
    return image


def cells(rows: Sequence[Row], lengths: Sequence[int], depths: Sequence[int]) -> list[list[float]]:
    """Mean scores in percent. Layout: (depths, lengths); NaN where nothing was answered."""
    found: dict[tuple[int, int], list[float]] = {}
    for row in rows:
        if row.score is not None:
            found.setdefault((int(row.groups["depth"]), int(row.groups["length"])), []).append(row.score)

    def mean(scores: list[float]) -> float:
        return 100 * sum(scores) / len(scores) if scores else float("nan")

    return [[mean(found.get((depth, length), [])) for length in lengths] for depth in depths]
