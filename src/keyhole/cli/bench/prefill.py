"""`keyhole bench prefill`."""

from __future__ import annotations

from typing import Annotated

import typer

from keyhole.cli import options as common
from keyhole.cli.bench import options
from keyhole.cli.bench.reading import read
from keyhole.cli.bench.run import Run
from keyhole.core.model_files import with_weights


def prefill(
    context: typer.Context,
    model: common.Model = None,
    weights: common.Weights = None,
    method: Annotated[str, typer.Option(help="Method with options, such as sale(tau=0.01).")] = "sale",
    text: options.Text = None,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of the prompt.")] = 4096,
    layer: Annotated[
        list[int] | None, typer.Option(help="Index of a layer; may be repeated.", show_default="all")
    ] = None,
    rounds: options.Rounds = 3,
    threads: common.Threads = None,
    json_file: options.Json = None,
    quiet: common.Quiet = False,
) -> None:
    """Attention over a prompt, on a model's own queries, keys and values, against torch's."""
    from keyhole.bench.prefill import prefill as measure

    loaded, ids = read(with_weights(model, weights), text, tokens, threads)
    run = Run(context, rounds, threads, json_file, quiet)
    run(lambda flusher: measure(loaded, ids, method, rounds=rounds, flusher=flusher, layers=layer or ()))
