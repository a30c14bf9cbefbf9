"""What an answer read, kept and took, told on stderr."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from keyhole.cli.console import stderr
from keyhole.cli.table import amount
from keyhole.core.break_even import ALWAYS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import Cache

    from keyhole.core.break_even import BreakEven
    from keyhole.generation.decoding import Token


def print_spent(method: str, cache: Cache, prefill_s: float, tokens: Sequence[Token]) -> None:
    from keyhole.engines.transformers import activated, footprint, usage
    from keyhole.methods.pays import said

    read, held = usage(cache), footprint(cache)
    seconds = sum(token.seconds for token in tokens)
    per_step = f"{read.read / read.steps:,.0f} of {read.tokens / read.steps:,.0f} tokens"
    per_token = amount(read.bytes / len(tokens))
    tiers = (f"{amount(size)} on {tier}" for tier, size in held._asdict().items())
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_row("method", method)
    table.add_row("read for each token", f"{per_step} ({read.read / read.tokens:.1%}), {per_token}")
    if read.read == read.tokens and (pays := _pays(cache)).tokens > read.tokens / read.steps:
        table.add_row(
            "", f"selecting pays from {said(pays.tokens)}, by {pays.source}; dense_below=0 selects at once"
        )
    table.add_row("attention mass read", f"{read.mass / read.steps:.1%} (estimated)")
    table.add_row("cache and index kept", ", ".join(tiers))
    if lookups := read.hits + read.misses:
        table.add_row("found in resident blocks", f"{read.hits / lookups:.1%} of {lookups:,} reads")
    if (share := activated(cache).share) < 1:
        table.add_row("weights read for each token", f"{share:.1%}")
    table.add_row("prompt", f"{prefill_s:.2f} s")
    table.add_row(
        "answer", f"{len(tokens)} tokens, {seconds:.2f} s, {1000 * seconds / len(tokens):.1f} ms each"
    )
    stderr().print(table)


def _pays(cache: Cache) -> BreakEven:
    """The context length below which the method reads everything."""
    from keyhole.engines.transformers import served_layers

    readings = [layer.reading for layer in served_layers(cache) if layer.reading is not None]
    return max((reading.dense_below for reading in readings), default=ALWAYS)
