"""`keyhole compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keyhole.cli import options
from keyhole.cli.asked import ALL, KL, Asked
from keyhole.cli.comparing import run, write
from keyhole.cli.console import progress
from keyhole.cli.divergence_table import print_divergences
from keyhole.cli.early import check_budgets, check_served
from keyhole.cli.inputs import find_source
from keyhole.cli.outputs import check_plot, check_writable
from keyhole.cli.table import print_rows
from keyhole.core.method_text import split_specs
from keyhole.core.model_files import with_weights

if TYPE_CHECKING:
    from keyhole.cli.asked import Found

METHODS = "dense,oracle,pqcache"
BUDGETS = "0.05,0.1,0.2,mass=0.95"
SAMPLES = 10
TOKENS = 128
TEXTS = 8
_MOST = 2**31 - 1


def compare(
    model: options.Model = None,
    weights: options.Weights = None,
    methods: Annotated[
        str,
        typer.Option(
            help="Methods with options, such as pqcache(bits=6), separated by commas; all is every method."
        ),
    ] = METHODS,
    budgets: Annotated[
        str, typer.Option(help="Tokens (256), fractions of the context (0.1), or attention mass (mass=0.95).")
    ] = BUDGETS,
    tasks: Annotated[
        str,
        typer.Option(
            help="Task names, separated by commas; kl is the divergence from full attention on real text.",
            show_default="all single-turn tasks",
        ),
    ] = "",
    context: Annotated[
        int | None,
        typer.Option(min=1, max=_MOST, help="Prompt length in tokens.", show_default="the training context"),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, max=_MOST, help="Prompts per task.")] = SAMPLES,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the prompts.")] = 0,
    haystack: Annotated[
        Path | None,
        typer.Option(
            help="Text file to hide the needles in, or shipped: the texts of the package.",
            show_default="documentation of installed packages",
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option(min=1, max=_MOST, help="kl: tokens predicted after the context.")
    ] = TOKENS,
    texts: Annotated[int, typer.Option(min=1, max=_MOST, help="kl: so many of the shipped texts.")] = TEXTS,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            help="kl: a text file instead of the shipped ones; may be repeated.", show_default=False
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1, max=_MOST, help="kl: texts computed at once.", show_default="as many as fit in memory"
        ),
    ] = None,
    exact_mass: Annotated[
        bool, typer.Option("--exact-mass", help="kl: measure attention mass at every budget, not only mass=.")
    ] = False,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write the rows to this file; those of kl after each method."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="kl: keep the rows of the --json file, measure what is missing.")
    ] = False,
    read_from: Annotated[
        list[Path] | None,
        typer.Option("--from", help="Show kl rows of this --json file, run nothing; may be repeated."),
    ] = None,
    times: Annotated[
        Path | None, typer.Option(help="kl: write the seconds of each method and budget to this file.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw accuracy, or divergence, against bytes read into this file (png, pdf, svg)."),
    ] = None,
    by_task: Annotated[bool, typer.Option("--by-task", help="Show every task instead of the mean.")] = False,
    threads: options.Threads = None,
    quiet: options.Quiet = False,
) -> None:
    """Compare methods over budgets and tasks: accuracy, divergence, bytes read, bytes held, time."""
    json_file, plot, haystack, times = (
        None if p is None else p.expanduser() for p in (json_file, plot, haystack, times)
    )
    for path, option in ((json_file, "--json"), (plot, "--plot"), (times, "--times")):
        check_writable(path, option)
    check_plot(plot)
    specs, grid, names = split_specs(methods), split_specs(budgets), split_specs(tasks)
    _check(specs, grid, names, resume, json_file)
    model = with_weights(model, weights)
    if not read_from:
        find_source(model)
    own = [path.expanduser() for path in text or ()]
    asked = Asked(
        *(model, specs, grid, names, context, samples, seed, haystack, tokens, texts, own, batch, exact_mass),
        *(json_file, resume, [path.expanduser() for path in read_from or ()], times, plot, threads, quiet),
    )
    with progress(quiet) as report:
        report("loading", 0, None)
        found = run(asked, report)
    write(found, asked)
    _print(found, by_task=by_task, quiet=quiet)


def _check(specs: list[str], grid: list[str], names: list[str], resume: bool, json_file: Path | None) -> None:
    for method in specs:
        if method != ALL:
            check_served(method)
    check_budgets(grid)
    if resume and (json_file is None or names != [KL]):
        raise ValueError(
            "--resume goes on with the rows of kl in a file; give --json FILE and --tasks kl, and run other "
            "tasks by themselves"
        )


def _print(found: Found, *, by_task: bool, quiet: bool) -> None:
    if found.rows:
        print_rows(found.rows, by_task=by_task, notes=not quiet)
    if found.divergences:
        print_divergences(found.divergences, found.timings, notes=not quiet)
