"""`keyhole calibrate sale`."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Annotated

import typer

from keyhole.cli import options
from keyhole.cli.calibrate.prompts import TextFiles, prompts_of, texts_of
from keyhole.cli.inputs import find_source
from keyhole.cli.outputs import check_writable

_SETTINGS = "thresholds.json"


def sale(
    out: Annotated[Path, typer.Option(help="Output directory for the thresholds.")],
    text: TextFiles = None,
    model: options.Model = None,
    error: Annotated[float, typer.Option(min=0.0, help="Allowed error of the attention output.")] = 0.02,
    kind: Annotated[
        str,
        typer.Option(
            help="What the error is measured against: `layer`, the norm of a layer's output, shared by its "
            "heads; `relative`, the norm of each head's output; or `absolute`, per head and token (the "
            "paper's)."
        ),
    ] = "layer",
    tile: Annotated[
        int, typer.Option(help="Keys that are read or skipped together, a power of two up to 32.")
    ] = 1,
    pooled: Annotated[
        bool, typer.Option(help="Shares are relative to the whole context, not only to sinks and window.")
    ] = True,
    rows: Annotated[int, typer.Option(help="Queries that share one selection of keys: 16, 32 or 64.")] = 16,
    means: Annotated[bool, typer.Option(help="Approximate skipped keys by their mean.")] = True,
    tokens: Annotated[int, typer.Option(min=2, help="Maximum tokens of text to use.")] = 8192,
    context: Annotated[int, typer.Option(min=2, help="Maximum tokens per prompt.")] = 4096,
    threads: options.Threads = None,
    quiet: options.Quiet = False,
) -> None:
    """Fit the thresholds of sale to a model's heads, on text similar to what it will read."""
    find_source(model)
    out = out.expanduser()
    check_writable(out / _SETTINGS, "--out")
    from keyhole.cli.console import progress, stderr, stdout
    from keyhole.cli.inputs import load
    from keyhole.engines.transformers.calibrate.thresholds import fit_thresholds
    from keyhole.engines.transformers.fingerprint import fingerprint
    from keyhole.methods import Sale
    from keyhole.prefill.salefile import write_thresholds

    method = Sale(thresholds=str(out), tile=tile, pooled=pooled, rows=rows, means=means)
    texts = texts_of(text)
    loaded = load(model, threads)
    prompts = prompts_of(loaded, texts, tokens, context)
    with progress(quiet) as report:
        done = count(1)
        report("layers of prompts", 0, None)
        found = fit_thresholds(
            loaded.model,
            prompts,
            reach=method.reach,
            error=error,
            kind=kind,
            fitted=lambda: report("layers of prompts", next(done), None),
        )
    write_thresholds(
        out,
        found,
        model=fingerprint(loaded.model),
        reach=method.reach,
        error=error,
        kind=kind,
        tokens=sum(ids.shape[1] for ids in prompts),
    )
    if not quiet:
        dense = sum(int((tau == 0).sum()) for tau in found.values())
        heads = sum(len(tau) for tau in found.values())
        stderr().print(f"{dense} of {heads} heads read everything", highlight=False)
    stdout().print(str(method), highlight=False, soft_wrap=True, markup=False)
