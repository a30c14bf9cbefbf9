"""`keyhole calibrate a2ats`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keyhole.cli import options
from keyhole.cli.calibrate.prompts import TextFiles, prompts_of, texts_of
from keyhole.cli.inputs import find_source
from keyhole.cli.outputs import check_writable

_SETTINGS = "codebooks.json"
_CHARACTERS = 16  # of a random identifier to a token, surely more than there are
_SEED = 0


def a2ats(
    out: Annotated[Path, typer.Option(help="Output directory for the codebooks.")],
    text: TextFiles = None,
    model: options.Model = None,
    codewords: Annotated[int, typer.Option(min=1, max=2**15, help="Codewords per KV head.")] = 2048,
    distance: Annotated[
        int,
        typer.Option(min=1, help="Constant relative position of queries; the option `distance` of a2ats."),
    ] = 2048,
    ranges: Annotated[
        int, typer.Option(min=1, max=16, help="Ranges of distances; the option `ranges` of a2ats.")
    ] = 4,
    tokens: Annotated[int, typer.Option(min=1, help="Maximum tokens of text to use.")] = 16_384,
    identifiers: Annotated[
        int, typer.Option(min=0, help="Additional tokens of random identifiers, as in needle tests.")
    ] = 4096,
    context: Annotated[int, typer.Option(min=2, help="Maximum tokens per prompt.")] = 4096,
    iterations: Annotated[int, typer.Option(min=1, help="Maximum Lloyd iterations.")] = 10,
    threads: options.Threads = None,
    quiet: options.Quiet = False,
) -> None:
    """Fit the codebooks of a2ats to a model, on text similar to what it will read."""
    find_source(model)
    out = out.expanduser()
    check_writable(out / _SETTINGS, "--out")
    from keyhole.cli.console import progress, stderr, stdout
    from keyhole.cli.inputs import load, training_context
    from keyhole.engines.transformers.calibrate.codebooks import fit_codebooks
    from keyhole.engines.transformers.fingerprint import fingerprint
    from keyhole.methods import A2ATS
    from keyhole.selection.quantisers.codefile import write_codebooks

    method = A2ATS(codebook=str(out), distance=distance, ranges=ranges)
    texts = texts_of(text)
    loaded = load(model, threads)
    size = min(context, training_context(loaded.model))
    prompts = prompts_of(loaded, texts, tokens, size)
    prompts += prompts_of(loaded, _identifiers(identifiers), identifiers, size)
    with progress(quiet) as report:
        report("layers", 0, None)
        found = fit_codebooks(
            loaded.model,
            prompts,
            method=method,
            codewords=codewords,
            iterations=iterations,
            fitted=lambda done, of: report("layers", done, of),
        )
    errors = {place: round(layer.error, 4) for place, layer in found.items()}
    write_codebooks(
        out,
        {place: layer.book for place, layer in found.items()},
        model=fingerprint(loaded.model),
        distance=distance,
        codewords=codewords,
        tokens=sum(ids.shape[1] for ids in prompts),
        relative_logit_error=errors,
    )
    if not quiet:
        stderr().print(f"relative error of logits, by layer: {errors}", highlight=False)
    stdout().print(str(method), highlight=False, soft_wrap=True, markup=False)


def _identifiers(tokens: int) -> list[str]:
    """A text of random identifiers with at least this many tokens; empty for 0."""
    from random import Random
    from uuid import UUID

    random = Random(_SEED)
    count = -(-tokens * _CHARACTERS // len(str(UUID(int=0))))
    return [", ".join(str(UUID(int=random.getrandbits(128))) for _ in range(count))] if tokens else []
