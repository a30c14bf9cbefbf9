"""Results as tables for the terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table

from keyhole.bench.result import Result, Timed


def table(result: Result) -> Table:
    """One line for each candidate and baseline; the last columns are times of baselines over its own."""
    drawn = Table(title=title(result), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("", "by"):
        drawn.add_column(heading)
    numbers = ["tokens read", "ms, median", "ms, best", "MiB", "GB/s", "of bandwidth"]
    for heading in numbers + [f"vs {one.candidate.name}" for one in result.baselines]:
        drawn.add_column(heading, justify="right")
    for one in result.timed:
        ratios = [f"{base.times.median / one.times.median:.2f}x" for base in result.baselines]
        drawn.add_row(*_cells(one, result.bandwidth), *ratios)
    for one in result.baselines:
        drawn.add_row(*_cells(one, result.bandwidth))
    return drawn


def title(result: Result) -> str:
    """The operation and its sizes in words."""
    sizes = result.sizes
    if sizes.query_heads is None:
        return f"{result.op}: {sizes.tokens} x {sizes.head_dim}, {sizes.dtype}"
    heads = f"{sizes.query_heads} query heads, {sizes.kv_heads} KV heads of size {sizes.head_dim}"
    batch = "" if sizes.batch == 1 else f"{sizes.batch} x "
    return f"{result.op}: {batch}{sizes.tokens} tokens, {heads}, {sizes.dtype}"


def _cells(one: Timed, bandwidth: float) -> list[str]:
    moved, times = one.candidate.bytes, one.times
    return [
        one.candidate.name,
        one.candidate.impl,
        str(one.candidate.read_tokens),
        f"{times.median:.3f}",
        f"{times.best:.3f}",
        f"{moved / 2**20:.1f}",
        f"{moved / times.median / 1e6:.1f}",
        f"{one.share(bandwidth):.0%}",
    ]
