"""`keyhole bench prefill`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keyhole.cli import options as common
from keyhole.cli.bench import options
from keyhole.cli.bench.run import Run


def prefill(
    context: typer.Context,
    model: common.Model = None,
    method: Annotated[str, typer.Option(help="Method with options, such as sale(tau=0.01).")] = "sale",
    text: Annotated[
        Path | None,
        typer.Option(help="Text file to read.", show_default="documentation of installed packages"),
    ] = None,
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
    from keyhole.cli.inputs import load, read_text
    from keyhole.evaluation.haystack import Haystack

    loaded = load(model, threads)
    read = " ".join(Haystack.from_environment("held-out").sentences) if text is None else read_text(str(text))
    ids = loaded.tokenizer(read, return_tensors="pt", verbose=False).input_ids[:, :tokens]
    if ids.shape[1] < tokens:
        raise ValueError(f"the text has {ids.shape[1]} tokens, not {tokens}; give --tokens or another --text")
    run = Run(context, rounds, threads, json_file, quiet)
    run(
        lambda flusher: measure(loaded.model, ids, method, rounds=rounds, flusher=flusher, layers=layer or ())
    )
