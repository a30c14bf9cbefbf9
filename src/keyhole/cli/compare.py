"""`keyhole compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keyhole.cli import options
from keyhole.cli.console import Report, progress, stderr
from keyhole.cli.early import check_budgets, check_method
from keyhole.cli.inputs import find_source
from keyhole.cli.outputs import check_plot, check_writable
from keyhole.cli.table import print_rows
from keyhole.core.files import write_text, write_whole
from keyhole.core.method_text import split_specs

if TYPE_CHECKING:
    from keyhole.evaluation import Row

METHODS = "dense,oracle,pqcache"
BUDGETS = "0.05,0.1,0.2,mass=0.95"
SAMPLES = 10


def compare(
    model: options.Model = None,
    methods: Annotated[
        str, typer.Option(help="Methods with options, such as pqcache(bits=6), separated by commas.")
    ] = METHODS,
    budgets: Annotated[
        str, typer.Option(help="Tokens (256), fractions of the context (0.1), or attention mass (mass=0.95).")
    ] = BUDGETS,
    tasks: Annotated[
        str, typer.Option(help="Task names, separated by commas.", show_default="all single-turn tasks")
    ] = "",
    context: Annotated[
        int | None,
        typer.Option(
            min=1, max=2**31 - 1, help="Prompt length in tokens.", show_default="the training context"
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, max=2**31 - 1, help="Prompts per task.")] = SAMPLES,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the prompts.")] = 0,
    haystack: Annotated[
        Path | None,
        typer.Option(
            help="Text file to hide the needles in.", show_default="documentation of installed packages"
        ),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the rows to this file.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw accuracy against bytes read into this file (png, pdf or svg).")
    ] = None,
    by_task: Annotated[bool, typer.Option("--by-task", help="Show every task instead of the mean.")] = False,
    threads: options.Threads = None,
    quiet: options.Quiet = False,
) -> None:
    """Compare methods over budgets and tasks: accuracy, bytes read, bytes held, time."""
    json_file, plot, haystack = (None if p is None else p.expanduser() for p in (json_file, plot, haystack))
    check_writable(json_file, "--json")
    check_writable(plot, "--plot")
    check_plot(plot)
    for method in split_specs(methods):
        check_method(method)
    check_budgets(split_specs(budgets))
    find_source(model)
    with progress(quiet) as report:
        report("loading", 0, None)
        rows = _run(model, methods, budgets, tasks, context, samples, seed, haystack, threads, report)
    _write(rows, json_file, plot, quiet)
    print_rows(rows, by_task=by_task, notes=not quiet)


def _run(
    model: str | None,
    methods: str,
    budgets: str,
    tasks: str,
    context: int | None,
    samples: int,
    seed: int,
    haystack: Path | None,
    threads: int | None,
    report: Report,
) -> list[Row]:
    from keyhole.cli.inputs import load, training_context
    from keyhole.evaluation import Haystack
    from keyhole.evaluation import compare as run
    from keyhole.evaluation.candidates import candidates
    from keyhole.evaluation.comparison import find_tasks
    from keyhole.evaluation.tasks import SINGLE_TURN

    # Read before the model is loaded, which takes longer.
    specs, grid, names = split_specs(methods), split_specs(budgets), split_specs(tasks) or list(SINGLE_TURN)
    candidates(specs, grid)
    find_tasks(names)
    text = None if haystack is None else Haystack.from_file(haystack)
    loaded = load(model, threads)
    return run(
        loaded.model,
        loaded.tokenizer,
        methods=specs,
        budgets=grid,
        tasks=names,
        context=context or training_context(loaded.model),
        samples=samples,
        seed=seed,
        haystack=text,
        progress=report,
    )


def _write(rows: list[Row], json_file: Path | None, plot: Path | None, quiet: bool) -> None:
    from keyhole.evaluation.plot import draw

    if json_file is not None:
        text = json.dumps([row.record() for row in rows], indent=1) + "\n"
        write_text(json_file, text)
    if plot is not None:
        write_whole(plot, lambda path: draw(rows, path))
    for path in (json_file, plot):
        if path is not None and not quiet:
            stderr().print(f"wrote {path}", highlight=False)
