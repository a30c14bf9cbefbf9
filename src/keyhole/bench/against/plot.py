"""Step time over context length, one line for each engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from keyhole.bench.against.figures import Figure
from keyhole.core.plot_style import COLOURS, FAINT, INK, MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DASHED = (0, (4, 2))  # engines other than Keyhole


def draw(figures: Sequence[Figure], path: Path, *, title: str) -> None:
    """Draw medians into a file; markers are hollow where the tokens in the cache are synthetic."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context({"svg.hashsalt": "keyhole", "svg.fonttype": "path"}):
        canvas = Canvas(figsize=(8, 4.6), dpi=160, layout="constrained")
        FigureCanvasAgg(canvas)
        axes = canvas.add_subplot()
        for index, name in enumerate(dict.fromkeys(figure.engine for figure in figures)):
            _line(axes, [figure for figure in figures if figure.engine == name], index)
        _scale(axes, sorted({figure.tokens for figure in figures}))
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        # Without the date, so that the same figures give the same file.
        dates = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
        canvas.savefig(path, metadata=dates.get(path.suffix.lower()))


def _line(axes: Axes, figures: Sequence[Figure], index: int) -> None:
    ordered = sorted(figures, key=lambda figure: figure.tokens)
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    axes.plot(
        [figure.tokens for figure in ordered],
        [figure.step for figure in ordered],
        color=colour,
        linestyle="-" if figures[0].keyhole else _DASHED,
        linewidth=1.8,
        label=figures[0].engine,
        zorder=2,
    )
    for figure in ordered:
        face = "white" if figure.synthetic else colour
        style = {"color": colour, "markerfacecolor": face, "markeredgewidth": 1.6, "markersize": 6.5}
        axes.plot(figure.tokens, figure.step, marker=marker, zorder=3, **style)
    last = ordered[-1]
    axes.annotate(
        f"{last.step:,.3g} ms",
        (last.tokens, last.step),
        xytext=(8, 0),
        textcoords="offset points",
        va="center",
        fontsize=8.5,
        color=colour,
    )


def _scale(axes: Axes, lengths: Sequence[int]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(lengths))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: f"{tokens:,.0f}"))
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda ms, _: f"{ms:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("tokens in the cache (log scale)", color=INK)
    axes.set_ylabel("a decode step, ms (log scale)", color=INK)
    axes.grid(True, color="#e2e2e2", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=9)
    axes.margins(x=0.1)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, handlelength=3)
