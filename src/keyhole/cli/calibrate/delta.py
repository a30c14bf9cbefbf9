"""`keyhole calibrate delta`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from keyhole.cli import options
from keyhole.cli.calibrate.prompts import TextFiles, texts_of
from keyhole.cli.console import progress, stderr, stdout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from keyhole.generation import Loaded


def delta(
    text: TextFiles = None,
    model: options.Model = None,
    context: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens to use of each text.", show_default="the training context"),
    ] = None,
    threads: options.Threads = None,
    quiet: options.Quiet = False,
) -> None:
    """Find the layers of a model that should lead others in delta, and print the method string."""
    from keyhole.cli.inputs import find_source, load

    find_source(model)

    texts = texts_of(text)
    with progress(quiet) as report:
        report("loading", 0, None)
        from keyhole.evaluation.shift import attention_shift, choose_layers
        from keyhole.methods import Delta

        loaded = load(model, threads)
        shift = attention_shift(loaded.model, _tokens(loaded, texts, context), report)
    full, leaders = choose_layers(shift)
    if not quiet:
        _print_shift(shift, full, leaders)
    stdout().print(str(Delta(full=full, leaders=leaders)), highlight=False)


def _tokens(loaded: Loaded, texts: Sequence[str], context: int | None) -> list[Tensor]:
    from keyhole.cli.inputs import training_context

    most = context or training_context(loaded.model)
    read = (loaded.tokenizer(text, return_tensors="pt", verbose=False).input_ids for text in texts)
    return [tokens[:, :most].to(loaded.model.device) for tokens in read]


def _print_shift(shift: dict[int, float], full: Sequence[int], leaders: Sequence[int]) -> None:
    from rich import box
    from rich.table import Table

    table = Table("layer", "shift", "reads", box=box.SIMPLE, pad_edge=False)
    for layer, value in shift.items():
        reads = "everything" if layer in full else "all keys" if layer in leaders else "pages"
        table.add_row(str(layer), f"{value:.3f}", reads)
    stderr().print(table)
