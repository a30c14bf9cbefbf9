"""Benchmarks of matrix-vector products."""

from __future__ import annotations

from typing import Annotated

import typer

from keyhole.cli.bench import options
from keyhole.cli.bench.run import Run
from keyhole.cli.options import Quiet, Threads


def gemv(
    context: typer.Context,
    rows: Annotated[int, typer.Option(min=1, help="Rows of the matrix.")] = 14_336,
    columns: Annotated[int, typer.Option(min=1, help="Columns of the matrix.")] = 4096,
    active: Annotated[
        str, typer.Option(help="Fractions of rows that are read, separated by commas.")
    ] = "0.1,0.3,0.5",
    dtype: options.Dtype = "float32",
    impl: options.Impl = "auto",
    rounds: options.Rounds = options.ROUNDS,
    threads: Threads = None,
    seed: options.Seed = 0,
    json_file: options.Json = None,
    quiet: Quiet = False,
) -> None:
    """Matrix-vector products that skip rows or columns, against torch's whole product and index_select."""
    from keyhole.bench.gemv import gemv as measure

    try:
        shares = [float(share) for share in active.split(",")]
    except ValueError as error:
        raise ValueError(f"--active {active!r} is not a list of shares; give some like 0.1,0.3") from error
    run = Run(context, rounds, threads, json_file, quiet)
    run(
        lambda flusher: measure(
            rows, columns, dtype, shares, rounds=rounds, flusher=flusher, impl=impl, seed=seed
        )
    )


def products(
    context: typer.Context,
    shape: options.Shape = options.SHAPE,
    layers: options.Layers = 0,
    vectors: Annotated[int, typer.Option(min=1, max=16, help="Vectors that are multiplied at once.")] = 1,
    rounds: options.Rounds = options.ROUNDS,
    threads: Threads = None,
    seed: options.Seed = 0,
    json_file: options.Json = None,
    quiet: Quiet = False,
) -> None:
    """All products of a model's layers: weights in float32, bfloat16, int8 and int4, against torch's."""
    from keyhole.bench.products import products as measure
    from keyhole.bench.shapes import cut, shape_named

    taken = cut(shape_named(shape), layers)
    run = Run(context, rounds, threads, json_file, quiet)
    run(lambda flusher: measure(taken, vectors=vectors, rounds=rounds, flusher=flusher, seed=seed))
