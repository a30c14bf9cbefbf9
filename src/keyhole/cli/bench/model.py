"""Benchmarks of whole models."""

from __future__ import annotations

from typing import Annotated

import typer

from keyhole.cli.bench import options
from keyhole.cli.bench.run import Run
from keyhole.cli.options import Quiet, Threads


def step(
    context: typer.Context,
    shape: options.Shape = options.SHAPE,
    method: options.Methods = [options.METHOD],  # noqa: B006 - typer copies it
    tokens: options.Tokens = 65_536,
    dtype: options.Dtype = "float32",
    read_tokens: options.ReadTokens = options.READ_TOKENS,
    layers: options.Layers = 0,
    rounds: options.Rounds = 7,
    threads: Threads = None,
    seed: options.Seed = 0,
    json_file: options.Json = None,
    quiet: Quiet = False,
) -> None:
    """A whole model's decode step with a long context, against transformers; weights are random."""
    from keyhole.bench.shapes import cut, shape_named
    from keyhole.bench.step import step as measure

    taken = cut(shape_named(shape), layers)
    run = Run(context, rounds, threads, json_file, quiet)
    run(
        lambda flusher: measure(
            taken,
            named(method),
            tokens=tokens,
            dtype=dtype,
            read_tokens=read_tokens,
            rounds=rounds,
            flusher=flusher,
            seed=seed,
        )
    )


def prompt(
    context: typer.Context,
    shape: options.Shape = options.SHAPE,
    method: options.Method = options.METHOD,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 512,
    dtype: options.Dtype = "float32",
    layers: options.Layers = 0,
    rounds: options.Rounds = 7,
    threads: Threads = None,
    seed: options.Seed = 0,
    json_file: options.Json = None,
    quiet: Quiet = False,
) -> None:
    """A whole model's prompt, against transformers; weights are random."""
    from keyhole.bench.prompt import prompt as measure
    from keyhole.bench.shapes import cut, shape_named

    taken = cut(shape_named(shape), layers)
    run = Run(context, rounds, threads, json_file, quiet)
    run(
        lambda flusher: measure(
            taken, method, tokens=tokens, dtype=dtype, rounds=rounds, flusher=flusher, seed=seed
        )
    )


def named(given: list[str], *, selecting: bool = False) -> list[str]:
    """The methods given; `all` are those that select or drop tokens, or only those that select."""
    from keyhole.methods import METHODS, EvictionMethod, RetrievalMethod

    kinds = RetrievalMethod if selecting else (RetrievalMethod, EvictionMethod)
    every = [name for name, kind in METHODS.items() if issubclass(kind, kinds)]
    return list(dict.fromkeys(spec for each in given for spec in (every if each == "all" else [each])))
