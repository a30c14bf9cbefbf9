"""Benchmarks of whole models."""

from __future__ import annotations

from typing import Annotated

import typer

from keyhole.cli.bench import options
from keyhole.cli.bench.reading import read
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
    weights: options.Form = None,
    json_file: options.Json = None,
    quiet: Quiet = False,
) -> None:
    """A whole model's decode step with a long context, against transformers; weights are random."""
    from keyhole.bench.shapes import cut, shape_named
    from keyhole.bench.step import step as measure

    if weights not in (None, *options.FORMS):
        raise ValueError(f"--weights {weights!r} is not one of {', '.join(options.FORMS)} (random weights)")
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
            weights=weights,
        )
    )


def prompt(
    context: typer.Context,
    shape: options.Shape = options.SHAPE,
    model: options.Weights = None,
    text: options.Text = None,
    method: options.Methods = [options.METHOD],  # noqa: B006 - typer copies it
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 512,
    dtype: options.Dtype = "float32",
    layers: options.Layers = 0,
    rounds: options.Rounds = 7,
    threads: Threads = None,
    seed: options.Seed = 0,
    json_file: options.Json = None,
    quiet: Quiet = False,
) -> None:
    """A whole model's prompt, against transformers; weights are random, or a model's on real text."""
    from keyhole.bench.prompt import prompt as measure
    from keyhole.bench.prompt import random_prompt
    from keyhole.bench.shapes import cut, shape_named

    _refuse(context, ("text",) if model is None else ("shape", "dtype", "layers", "seed"), model)
    methods, run = named(method), Run(context, rounds, threads, json_file, quiet)
    if model is None:
        taken = cut(shape_named(shape), layers)
        weights, ids = random_prompt(taken, tokens, dtype, seed)
        note = f"random weights, {taken.layers} layers"
    else:
        weights, ids = read(model, text, tokens, threads)
        note = f"{model}; a text of {'the package' if text is None else 'your own'}"
    run(lambda flusher: measure(weights, ids, methods, rounds=rounds, flusher=flusher, note=note))


def _refuse(context: typer.Context, names: tuple[str, ...], model: str | None) -> None:
    """Raises ValueError where one of these options was given, which would have no effect."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            how = "only together with --model" if model is None else "not together with --model"
            raise ValueError(f"--{name} has an effect {how}; change one of the two")


def named(given: list[str], *, selecting: bool = False) -> list[str]:
    """The methods given; `all` are those that select or drop tokens, or only those that select."""
    from keyhole.methods import METHODS, EvictionMethod, RetrievalMethod

    kinds = RetrievalMethod if selecting else (RetrievalMethod, EvictionMethod)
    every = [name for name, kind in METHODS.items() if issubclass(kind, kinds) and not kind.required]
    return list(dict.fromkeys(spec for each in given for spec in (every if each == "all" else [each])))
