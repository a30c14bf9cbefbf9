"""Accuracy against bytes read, one line for each method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from keyhole.core.plot_style import COLOURS, FAINT, HOLLOW, INK, MARKERS
from keyhole.evaluation.rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAMED = 4  # with more methods, only the ends of their lines are named, and with more than colours none
_DASHED = (0, (4, 1.5))  # lines of methods for whom no colour is left
_MIB = 2**20


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the means over the tasks into a file; targets of mass stand apart from a method's line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    means = [row for row in rows if row.is_mean]
    methods = [name for name in dict.fromkeys(row.method for row in means) if name != "dense"]
    _draw_dense(axes, means)
    for index, name in enumerate(methods):
        ours = [row for row in means if row.method == name]
        _draw_method(axes, ours, index, of=len(methods))
    if any(row.mass_target is not None for row in means):
        axes.plot([], [], **HOLLOW, color=FAINT, marker="o", label="budget is a share of attention mass")
    _scale(axes, means)
    _word(axes, means[0], len({row.task for row in rows}) - 1)
    figure.legend(
        loc="outside lower center", ncols=3, handlelength=3, frameon=False, fontsize=9, labelcolor=INK
    )
    figure.savefig(path)


def _draw_dense(axes: Axes, means: Sequence[Row]) -> None:
    dense = next(row for row in means if row.method == "dense")
    axes.axhline(100 * dense.accuracy, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.plot(
        *_place(dense),
        marker="*",
        markersize=13,
        color=INK,
        linestyle="none",
        label="full attention",
        zorder=4,
    )


def _draw_method(axes: Axes, rows: Sequence[Row], index: int, *, of: int) -> None:
    style = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)], "zorder": 3}
    line = "-" if index < len(COLOURS) else _DASHED
    lined = sorted((row for row in rows if row.mass_target is None), key=_place)
    alone = [row for row in rows if row.mass_target is not None]
    axes.plot(*_places(lined), linestyle=line, linewidth=1.8, markersize=6.5, label=rows[0].method, **style)
    axes.plot(*_places(alone), **HOLLOW, **style)
    for row in rows:
        if of <= _NAMED or row in alone or (of <= len(COLOURS) and row in (lined[0], lined[-1])):
            _name_point(axes, row, style["color"], above=row in alone)


def _name_point(axes: Axes, row: Row, colour: str, *, above: bool) -> None:
    from matplotlib.patheffects import withStroke

    axes.annotate(
        _budget(row),
        _place(row),
        xytext=(0, 7 if above else -7),
        textcoords="offset points",
        ha="center",
        va="bottom" if above else "top",
        fontsize=8,
        color=colour,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
        zorder=5,
    )


def _budget(row: Row) -> str:
    if row.mass_target is not None:
        return f"mass {row.mass_target:g}"
    return f"{100 * float(row.budget):g}%" if "." in row.budget else row.budget


def _place(row: Row) -> tuple[float, float]:
    return row.kv_bytes_read_per_token / _MIB, 100 * row.accuracy


def _places(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    return [_place(row)[0] for row in rows], [_place(row)[1] for row in rows]


def _scale(axes: Axes, means: Sequence[Row]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    lowest, highest = (100 * extreme(row.accuracy for row in means) for extreme in (min, max))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    # Room for the names of the points, which may be above 100 or below 0.
    axes.set_ylim(lowest - 12, min(highest + 12, 104))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= 100])
    axes.margins(x=0.08)


def _word(axes: Axes, row: Row, tasks: int) -> None:
    axes.set_title(
        f"Accuracy against bytes read: {row.samples} prompts of {row.context:,} tokens",
        loc="left",
        fontsize=11,
        color=INK,
    )
    axes.set_xlabel("keys, values and index read per generated token (MiB, log scale)", color=INK)
    axes.set_ylabel(f"accuracy, mean over {tasks} tasks (%)" if tasks > 1 else "accuracy (%)", color=INK)
    axes.grid(True, color="#e2e2e2", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)
