"""`keyhole calibrate chess`."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Annotated

import typer

from keyhole.cli import options
from keyhole.cli.calibrate.prompts import TextFiles, prompts_of, texts_of
from keyhole.cli.inputs import find_source
from keyhole.cli.outputs import check_writable

_SETTINGS = "activations.json"


def chess(
    out: Annotated[Path, typer.Option(help="Output directory for the activation statistics.")],
    text: TextFiles = None,
    model: options.Model = None,
    sparsity: Annotated[
        float, typer.Option(help="Sparsity in the printed method string; the directory serves any.")
    ] = 0.5,
    attention: Annotated[bool, typer.Option(help="Also skip inputs of the attention projections.")] = True,
    first: Annotated[str, typer.Option(help="Projection computed for all channels: `gate` or `up`.")] = "up",
    weighting: Annotated[
        str, typer.Option(help="Weight of a channel's importance: `mean`, `norm` or `none`.")
    ] = "mean",
    tokens: Annotated[int, typer.Option(min=1, help="Maximum tokens of text to use.")] = 8192,
    context: Annotated[int, typer.Option(min=1, help="Maximum tokens per prompt.")] = 2048,
    threads: options.Threads = None,
    quiet: options.Quiet = False,
) -> None:
    """Collect the activation statistics of a model for chess, on text similar to what it will read."""
    find_source(model)
    out = out.expanduser()
    check_writable(out / _SETTINGS, "--out")
    from keyhole.cli.console import progress, stderr, stdout
    from keyhole.cli.inputs import load
    from keyhole.engines.transformers.fingerprint import fingerprint
    from keyhole.engines.transformers.sparse_ffn.activations import fit_activations
    from keyhole.engines.transformers.sparse_ffn.weights import activated_share
    from keyhole.feedforward.file import write_activations
    from keyhole.methods import Chess

    method = Chess(sparsity=sparsity, attention=attention, file=str(out), first=first, weighting=weighting)
    texts = texts_of(text)
    loaded = load(model, threads)
    prompts = prompts_of(loaded, texts, tokens, context)
    with progress(quiet) as report:
        done = count(1)
        report("prompts", 0, 2 * len(prompts))
        found = fit_activations(
            loaded.model,
            prompts,
            rule=method.rule,
            attention=attention,
            computed=lambda: report("prompts", next(done), 2 * len(prompts)),
        )
    write_activations(
        out,
        found,
        model=fingerprint(loaded.model),
        rule=method.rule,
        attention=attention,
        tokens=sum(ids.shape[1] for ids in prompts),
    )
    if not quiet:
        share = activated_share(loaded.model, sparsity, attention=attention)
        stderr().print(f"a step reads {share:.1%} of the weights", highlight=False)
    stdout().print(str(method), highlight=False, soft_wrap=True, markup=False)
