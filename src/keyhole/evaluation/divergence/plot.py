"""Divergence against bytes read and bytes held, one line for each method, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from keyhole.core.plot_style import COLOURS, FAINT, HOLLOW, INK, MARKERS
from keyhole.evaluation.divergence.rows import DivergenceRow, Settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MIB = 2**20
_LINES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)))
_SHIFT = 4  # of markers, when colours begin again
_LEAST = 1e-7  # nats; logarithms have no place for zero

Place = Callable[[DivergenceRow], float]


def draw(rows: Sequence[DivergenceRow], path: Path) -> None:
    """Draw complete rows into a file: a pair of panels for each model, context and set of texts.

    Raises:
        ValueError: there is no complete row of a method other than dense attention.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [row for row in rows if row.complete]
    methods = [name for name in dict.fromkeys(row.method for row in shown) if name != "dense"]
    if not methods:
        raise ValueError("there is nothing to draw yet but full attention; measure at least one method")
    groups = [list(group) for _, group in groupby(shown, key=lambda row: row.settings.key)]
    figure = Figure(figsize=(12, 1.2 + 4.6 * len(groups)), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(groups), 2, squeeze=False)
    for (left, right), group in zip(panels, groups, strict=True):
        _draw_panel(left, group, methods, _read, "read per generated token")
        _draw_panel(right, group, methods, _held, "held per sequence")
        left.set_title(_title(group[0].settings), loc="left", fontsize=10, color=INK)
        left.set_ylabel("mean KL(full attention || method), nats", color=INK)
    handles = {
        label: h for axes in panels.flat for h, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=min(6, len(handles)),
        handlelength=3.2,
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
    )
    figure.savefig(path)


def _draw_panel(
    axes: Axes, rows: Sequence[DivergenceRow], methods: Sequence[str], place: Place, what: str
) -> None:
    for dense in (row for row in rows if row.method == "dense"):
        axes.axvline(place(dense), color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.plot([], [], color=FAINT, linewidth=1, linestyle=(0, (4, 3)), label="full attention")
    for index, method in enumerate(methods):
        _draw_method(axes, [row for row in rows if row.method == method], index, place)
    if any(row.mass_target is not None for row in rows):
        axes.plot([], [], **HOLLOW, color=FAINT, marker="o", label="budget is a share of attention mass")
    _scale(axes, what)


def _draw_method(axes: Axes, rows: Sequence[DivergenceRow], index: int, place: Place) -> None:
    if not rows:
        return
    turn, place_in_turn = divmod(index, len(COLOURS))
    # Methods of one colour have different markers, so that a single point tells which it is.
    colour, marker = COLOURS[place_in_turn], MARKERS[(index + _SHIFT * turn) % len(MARKERS)]
    line = _LINES[turn % len(_LINES)]
    lined = sorted((row for row in rows if row.mass_target is None), key=place)
    alone = [row for row in rows if row.mass_target is not None]
    for row in rows:
        if row.summary.kl_mean_interval is not None:
            ends = [max(end, _LEAST) for end in row.summary.kl_mean_interval]
            axes.plot([place(row)] * 2, ends, color=colour, linewidth=1.1, alpha=0.45, zorder=2)
    points = [place(row) for row in lined], [_kl(row) for row in lined]
    style = {"color": colour, "marker": marker, "zorder": 3}
    axes.plot(*points, linestyle=line, linewidth=1.5, markersize=5, label=rows[0].method, **style)
    axes.plot([place(row) for row in alone], [_kl(row) for row in alone], **HOLLOW, **style)


def _kl(row: DivergenceRow) -> float:
    return max(row.summary.kl_mean, _LEAST)


def _read(row: DivergenceRow) -> float:
    return row.summary.kv_bytes_read_per_token / _MIB


def _held(row: DivergenceRow) -> float:
    found = row.summary
    return (found.kv_bytes_device + found.kv_bytes_host + found.kv_bytes_disk) / _MIB


def _scale(axes: Axes, what: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda nats, _: f"{nats:g}"))
    axes.set_xlabel(f"keys, values and index {what} (MiB, log scale)", color=INK)
    axes.grid(True, color="#e2e2e2", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=8.5)


def _title(settings: Settings) -> str:
    texts = len(settings.texts)
    return (
        f"{settings.label}: {settings.tokens} tokens after {settings.context:,} of "
        f"{texts} text{'s' * (texts > 1)}; bars are 95% intervals over texts"
    )
