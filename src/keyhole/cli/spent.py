"""What an answer read, kept and took, on stderr."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from keyhole.cli.console import stderr
from keyhole.cli.table import amount

if TYPE_CHECKING:
    from keyhole.core.break_even import BreakEven
    from keyhole.generation import Answer


def print_chosen(answer: Answer, method: str) -> None:
    """Say by what a text beyond the model's range was read in place of the method that was asked for."""
    from keyhole.methods import Recipe

    if answer.method != str(Recipe.parse(method)):
        # docs/how-to/beyond-range.md has the figures.
        text = (
            f"the text is longer than the model's range; read by {answer.method}. "
            "Measured up to 1.5 times a range only: it finds facts far back there, and predicts "
            "what follows slightly worse than dense attention over the newest tokens"
        )
        stderr().print(text, highlight=False, markup=False)


def print_spent(answer: Answer) -> None:
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    for label, text in _rows(answer):
        table.add_row(label, text)
    stderr().print(table)


def _rows(answer: Answer) -> list[tuple[str, str]]:
    read, count = answer.usage, len(answer.tokens)
    rows = [("method", answer.method)]
    if read.steps:
        rows += _read_rows(answer)
    tiers = (f"{amount(size)} on {tier}" for tier, size in answer.footprint._asdict().items())
    rows.append(("cache and index size", ", ".join(tiers)))
    if lookups := read.hits + read.misses:
        rows.append(("block cache hits", f"{read.hits / lookups:.1%} of {lookups:,} reads"))
    if read.gamma is not None:
        rows.append(("fetched per step", f"{amount(read.fetched / read.steps)} a layer, for all sequences"))
        rows.append(("blocks read before", f"{read.gamma:.1%} of a step's, by the step before"))
    if (share := answer.activated.share) < 1:
        rows.append(("weights read per token", f"{share:.1%}"))
    rows.append(("prompt", f"{answer.prompt_tokens:,} tokens, {answer.prompt_seconds:.2f} s"))
    each = 1000 * answer.seconds / count
    rows.append(("answer", f"{count} tokens, {answer.seconds:.2f} s, {each:.1f} ms per token"))
    return rows


def _read_rows(answer: Answer) -> list[tuple[str, str]]:
    read = answer.usage
    tokens = f"{read.read / read.steps:,.0f} of {read.tokens / read.steps:,.0f} tokens"
    bytes_ = amount(read.bytes / len(answer.tokens))
    rows = [("read per generated token", f"{tokens} ({read.read / read.tokens:.1%}), {bytes_}")]
    if read.read == read.tokens and answer.selects.tokens > read.tokens / read.steps:
        rows.append(("", f"{_said(answer.selects)}; dense_below=0 selects at any length"))
    rows = [*rows, ("attention mass read", f"{read.mass / read.steps:.1%} (estimated)")]
    error = read.mean_error
    return rows if error is None else [*rows, ("error of attention", f"at most {error:.2%} (mean bound)")]


def _said(pays: BreakEven) -> str:
    from keyhole.methods.pays import said

    return f"selecting pays from {said(pays.tokens)}, by {pays.source}"
