"""`keyhole bench calibrate`."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Annotated

import typer

from keyhole.cli.bench import options
from keyhole.cli.bench.model import named
from keyhole.cli.options import Quiet, Threads

if TYPE_CHECKING:
    from keyhole.bench.shapes import Attention

_SECONDS = 60.0  # more patience than a first request would have


def calibrate(
    method: options.Methods = [options.METHOD],  # noqa: B006 - typer copies it
    shape: Annotated[str | None, typer.Option(help="Public model whose sizes to take.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Model directory or hub name whose sizes to take.")
    ] = None,
    query_heads: options.QueryHeads = 32,
    kv_heads: options.KVHeads = 8,
    head_dim: options.HeadDim = 128,
    dtype: options.Dtype = "float32",
    batch: Annotated[
        list[int], typer.Option(min=1, help="Sequences that a step serves; may be repeated.")
    ] = [1],  # noqa: B006 - typer copies it
    threads: Threads = None,
    force: Annotated[bool, typer.Option("--force", help="Measure again what is known.")] = False,
    quiet: Quiet = False,
) -> None:
    """From which context length on a method pays on this machine; below it everything is read."""
    from keyhole.bench.case import DTYPES, check_dtype
    from keyhole.bench.shapes import Attention
    from keyhole.cli.console import progress, stderr, stdout
    from keyhole.tuning.break_even import NEVER, break_even, cache_file

    check_dtype(dtype)
    sizes = _sizes(shape, model) or Attention(query_heads, kv_heads, head_dim)
    for spec, sequences in product(named(method, selecting=True), batch):
        with progress(quiet) as report:
            tokens = break_even(
                spec,
                **sizes._asdict(),
                dtype=DTYPES[dtype],
                batch=sequences,
                threads=threads or 0,
                force=force,
                seconds=_SECONDS,
                progress=lambda done, total, spec=spec: report(spec, done, total),
            )
        stdout().print(
            f"{spec}: "
            + (f"batch {sequences}, " if sequences > 1 else "")
            + ("no length in sight" if tokens == NEVER else f"from {tokens} tokens on")
        )
    if not quiet:
        stderr().print(f"kept in {cache_file()}", highlight=False, markup=False)


def _sizes(shape: str | None, model: str | None) -> Attention | None:
    from keyhole.bench.shapes import attention_of, shape_named

    if shape and model:
        raise ValueError(f"--shape {shape} and --model {model} both give sizes; keep one of them")
    if shape:
        return shape_named(shape).attention
    return attention_of(model) if model else None
