"""python docs/gen/results.py: docs/results/speed.md and its plots, from the rows of docs/benchmarks.md."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parents[1]

_HEAD = """\
# Speed

Four tables and two plots, made by `docs/gen/results.py` from [all rows](../benchmarks.md), where commands, machine and notes are.
2 threads of an AMD EPYC with AVX2, torch 2.13, float32 unless stated. Medians; Keyhole and baselines take turns, each run starts with
cold CPU caches. Every operation is checked against its reference before it is timed. **Kernels for GPUs have not been run on a
GPU**, so there is no table for them.

Rows are of the defaults that methods had when they were measured: `quest(page=16, box_dtype=auto)`, `a2ats(ranges=1)`, `shadowkv(chunk=8,
rank=160)`, and `delta` and `mpcache` as in their papers. Today's defaults read finer units and take longer; [where they pay](../how-to/tune.md)
is measured with today's.

**dense** is the best dense call: for one layer torch's sdpa with the query heads of a KV head folded into rows, so that K and V are
read once per KV head; for a whole step Keyhole's own dense attention. **stock** is what transformers does without Keyhole: sdpa with
`enable_gqa` for one layer, its sdpa attention for a step. The ratio is the baseline's time divided by Keyhole's: above 1 is faster.
"""


class Row(NamedTuple):
    """A line of a table: what was timed, at which size, and one baseline."""

    command: str
    noisy: bool
    method: str
    tokens: int
    heads: str
    size: str
    dtype: str
    read: int
    ms: float
    mib: float
    baseline: str
    baseline_ms: float

    @property
    def ratio(self) -> float:
        return self.baseline_ms / self.ms


def rows() -> list[Row]:
    """Every row of docs/benchmarks.md."""
    found = []
    for section in (DOCS / "benchmarks.md").read_text(encoding="utf-8").split("\n### ")[1:]:
        command = section[: section.index("\n")].strip("`")
        noisy = "NOISY" in section
        for line in section.splitlines():
            cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
            if len(cells) == 13 and cells[-1].endswith("x"):
                method, _, tokens, heads, size, dtype, read, ms, mib, _, baseline, slow, _ = cells
                count, few, times = _integer(tokens), _integer(read), (float(ms), float(mib))
                found.append(
                    Row(command, noisy, method, count, heads, size, dtype, few, *times, baseline, float(slow))
                )
    return found


def table_of(row: Row) -> str:
    """The table a row belongs to."""
    kind = row.command.split()[2]
    return {"decode": "layer", "step": "step"}.get(kind, "rest" if kind in ("build", "prompt") else "kernel")


def page(found: list[Row]) -> str:
    """The page's Markdown."""
    parts = [_HEAD]
    for name, title, text in _TABLES:
        mine = [row for row in found if table_of(row) == name]
        parts.append(f"## {title}\n\n{text}\n\n{_pivot(mine)}")
        if name in ("layer", "step"):
            parts.append(f"![{title}]({name}.svg)\n")
    return "\n".join(parts)


_TABLES = (
    (
        "layer",
        "One layer, one decode step",
        "32 query and 8 KV heads of 128 unless stated. Indexing tokens that leave the window comes on top, once in 33 or 65 steps. "
        "For methods that drop tokens (4,097 read) the baseline is dense attention over the tokens that are left: it shows what their "
        "storage costs, not what dropping saves. They are not in the plot.",
    ),
    (
        "step",
        "A whole decode step",
        "The Llama-3.2-1B shape with random weights and synthetic tokens in the cache; 16 layers, or 4 where the table says so. "
        "Feed-forward and projections, which no method but `chess` makes faster, are in the times.",
    ),
    (
        "kernel",
        "Single operations",
        "Attention over chosen slots, the scan of product-quantiser codes, products with few active rows.",
    ),
    (
        "rest",
        "Prompts and indexes",
        "What a prompt costs: the index once, against the attention of the prompt.",
    ),
)
_STOCK = {"sdpa enable_gqa", "transformers sdpa"}
_USUAL = {"sdpa folded", "keyhole dense", *_STOCK}


def _pivot(found: Iterable[Row]) -> str:
    """One line for each thing timed, its baselines side by side."""
    groups: dict[tuple, list[Row]] = {}
    for row in found:
        key = (row.command, row.method, row.tokens, row.dtype, row.ms)
        groups.setdefault(key, []).append(row)
    lines = [
        "| method | context | shape | read | ms | MiB | dense, ms | ratio | stock, ms | ratio |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for group in sorted(groups.values(), key=lambda group: (-group[0].tokens, group[0].ms)):
        first = group[0]
        stock = [row for row in group if row.baseline in _STOCK]
        dense = [row for row in group if row.baseline not in _STOCK]
        cells = [
            f"`{first.method}`" + (" (noisy)" if first.noisy else ""),
            f"{first.tokens:,}",
            _shape(first),
            f"{first.read:,}",
            f"{first.ms:,.2f}",
            f"{first.mib:,.0f}",
            *_baselines(dense),
            *_baselines(stock),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _baselines(found: list[Row]) -> tuple[str, str]:
    times = (
        f"{row.baseline_ms:,.1f}" + ("" if row.baseline in _USUAL else f" ({row.baseline})") for row in found
    )
    return "; ".join(times) or "-", "; ".join(f"{row.ratio:.2f}x" for row in found) or "-"


def _shape(row: Row) -> str:
    layers = re.search(r"--layers (\d+)", row.command)
    parts = [f"{row.heads} x {row.size}" if row.heads else f"{row.size} columns", row.dtype]
    return ", ".join(parts + ([f"{layers[1]} layers"] if layers else []))


def _integer(text: str) -> int:
    return int(text.replace(",", ""))


def draw(found: list[Row]) -> None:
    """The plots beside the page: ratio to dense by method, at each context."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "keyhole"
    for name, baseline in (("layer", "sdpa folded"), ("step", "keyhole dense")):
        mine = [row for row in found if table_of(row) == name and row.baseline == baseline]
        if name == "layer":
            mine = [
                row for row in mine if row.dtype == "float32" and row.heads == "32/8" and row.read == 2048
            ]
        else:
            mine = [row for row in mine if "--method all" in row.command]
        _bars(mine, DOCS / "results" / f"{name}.svg")


def _bars(found: list[Row], path: Path) -> None:
    from matplotlib import pyplot

    contexts = sorted({row.tokens for row in found})
    best = {(row.method.split("(")[0], row.tokens): row.ratio for row in found}
    methods = sorted(
        {method for method, _ in best}, key=lambda m: max(r for (n, _), r in best.items() if n == m)
    )
    figure, axes = pyplot.subplots(figsize=(7, 0.36 * len(methods) + 1.2), layout="constrained")
    height = 0.8 / len(contexts)
    for number, tokens in enumerate(contexts):
        here = [
            (place, best[method, tokens]) for place, method in enumerate(methods) if (method, tokens) in best
        ]
        bars = axes.barh(
            [place + (number - (len(contexts) - 1) / 2) * height for place, _ in here],
            [ratio for _, ratio in here],
            height=height * 0.92,
            label=f"{tokens:,} tokens",
        )
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=7)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(methods)), methods)
    axes.set_xlabel("times faster than dense attention")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    everything = rows()
    (DOCS / "results" / "speed.md").write_text(page(everything), encoding="utf-8")
    if "--no-plots" not in sys.argv:
        draw(everything)
