"""`keyhole bench gpu`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keyhole.cli.bench import options
from keyhole.cli.options import Quiet


def gpu(
    shape: options.Shape = "Llama-3.1-8B",
    method: options.Method = options.METHOD,
    tokens: options.Tokens = options.TOKENS,
    dtype: options.Dtype = "bfloat16",
    read_tokens: options.ReadTokens = options.READ_TOKENS,
    layers: options.Layers = 0,
    rounds: options.Rounds = options.ROUNDS,
    seconds: Annotated[
        float, typer.Option(min=1, help="Time limit, after which no further part starts.")
    ] = 420.0,
    seed: options.Seed = 0,
    device: Annotated[str, typer.Option(help="cuda, or cpu for a dry run.")] = "cuda",
    directory: Annotated[
        Path | None, typer.Option("--json", help="Directory for one file of rows per part.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """All GPU measurements: layers and decode steps as CUDA graphs, scan, prompts by SALE, index."""
    import torch

    from keyhole.bench.case import Case
    from keyhole.bench.gpu.suite import Outcome, Plan, run
    from keyhole.bench.shapes import cut, shape_named
    from keyhole.bench.tables import table
    from keyhole.cli.console import stderr, stdout

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("torch finds no GPU; give --device cpu for a dry run")
    taken = cut(shape_named(shape), layers)
    sizes = taken.attention
    case = Case(tokens, *sizes, dtype, read_tokens, seed, device=device)
    plan = Plan(case, taken, method, rounds=rounds, seconds=seconds)
    if device == "cpu":
        plan = plan._replace(batches=(1, 2), lengths=(), prompts=(tokens,))

    def report(outcome: Outcome) -> None:
        for result in outcome.results:
            stdout().print(table(result))
        notes = [note for result in outcome.results for note in result.notes]
        for note in [] if quiet else notes:
            stderr().print(f"- {note}", highlight=False, markup=False)
        if outcome.failure:
            stderr().print(f"{outcome.name}: {outcome.failure}", highlight=False, markup=False)

    outcomes = run(plan, directory, report)
    if not any(outcome.results for outcome in outcomes):
        raise typer.Exit(1)
