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
    seconds: Annotated[float, typer.Option(min=1, help="After which no further part is begun.")] = 420.0,
    seed: options.Seed = 0,
    device: Annotated[str, typer.Option(help="cuda, or cpu to try the program out.")] = "cuda",
    directory: Annotated[
        Path | None, typer.Option("--json", help="Directory for a file of rows of each part.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Everything on a GPU: layers and a model's decode steps as CUDA graphs, scan, prompts by SALE, index."""
    import torch

    from keyhole.bench.case import Case
    from keyhole.bench.gpu.suite import Outcome, Plan, run
    from keyhole.bench.shapes import cut, shape_named
    from keyhole.bench.tables import table
    from keyhole.cli.console import stderr, stdout

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("there is no GPU that torch can use; give --device cpu to try the program out")
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
