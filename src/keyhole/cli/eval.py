"""`keyhole eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from keyhole.cli import options
from keyhole.cli.console import Report, progress, stderr
from keyhole.cli.early import check_served
from keyhole.cli.eval_table import print_lines
from keyhole.cli.inputs import find_source
from keyhole.cli.outputs import check_plot, check_writable
from keyhole.core.files import write_text, write_whole
from keyhole.core.method_text import split_specs
from keyhole.core.model_files import with_weights

if TYPE_CHECKING:
    from keyhole.evaluation.benchmarks import Result, Settings

_MOST = 2**31 - 1
Name = Literal[
    "ruler", "longbench", "longbench-v2", "infinitebench", "needlebench", "niah", "babilong", "scbench"
]
_GRIDS = ("needlebench", "niah")


def eval_(
    benchmark: Annotated[Name, typer.Option(help="Benchmark.")],
    data: Annotated[
        Path | None, typer.Option(help="Directory with the benchmark's own files; niah needs none.")
    ] = None,
    model: options.Model = None,
    weights: options.Weights = None,
    method: Annotated[
        str, typer.Option(help="Methods with options, such as pqcache(bits=6), separated by commas.")
    ] = "dense,pqcache",
    tasks: Annotated[
        str, typer.Option(help="Task names, separated by commas.", show_default="all there are files for")
    ] = "",
    limit: Annotated[
        int | None, typer.Option(min=1, max=_MOST, help="Samples of each task, the first ones.")
    ] = None,
    lengths: Annotated[str, typer.Option(help="Tokens of the prompts of a grid.")] = "1024,2048,4096",
    depths: Annotated[str, typer.Option(help="Depths of needles in percent.")] = "0,25,50,75,100",
    repeats: Annotated[int, typer.Option(min=1, max=_MOST, help="Prompts of each cell of a grid.")] = 1,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the prompts of a grid.")] = 0,
    requests: Annotated[
        bool, typer.Option("--requests", help="SCBench: ask questions one by one, not as a conversation.")
    ] = False,
    max_length: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=_MOST,
            help="Cut longer prompts in the middle, where the benchmark does.",
            show_default="the model's range; none for methods that renumber",
        ),
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--raw", help="Use the chat template.", show_default="as the benchmark does"),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write scores to this file, and answers beside it; run again to go on."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw scores by length and depth into this file (png, pdf or svg).")
    ] = None,
    chunk: Annotated[
        int | None, typer.Option(min=2, max=_MOST, help="Prompt tokens computed at once.")
    ] = None,
    threads: options.Threads = None,
    quiet: options.Quiet = False,
) -> None:
    """Score methods on a benchmark's own files, by its own metrics."""
    data, json_file, plot = (None if path is None else path.expanduser() for path in (data, json_file, plot))
    methods = _methods(method)
    grid = {
        "lengths": _numbers("--lengths", lengths, 2, _MOST),
        "depths": _numbers("--depths", depths, 0, 100),
    }
    _check_files(benchmark, data, json_file, plot)
    model = with_weights(model, weights)
    find_source(model)
    with progress(quiet) as report:
        report("loading", 0, None)
        from keyhole.evaluation.benchmarks import Settings

        settings = Settings(
            benchmark=benchmark,
            data=data,
            tasks=split_specs(tasks),
            limit=limit,
            chat=chat,
            max_length=max_length,
            requests=requests,
            repeats=repeats,
            seed=seed,
            **grid,
        )
        result = _run(settings, model, methods, threads, chunk, json_file, report)
    _write(result, json_file, plot, quiet)
    print_lines(result.rows, benchmark, is_grid=benchmark in _GRIDS)
    for note in [] if quiet else result.notes:
        stderr().print(f"note: {note}", highlight=False)


def _run(
    settings: Settings,
    model: str | None,
    methods: list[str],
    threads: int | None,
    chunk: int | None,
    json_file: Path | None,
    report: Report,
) -> Result:
    from keyhole.cli.inputs import load
    from keyhole.evaluation.benchmarks import evaluate, prepare

    found = prepare(settings)  # read and checked before the model is loaded, which takes longer
    answers = None if json_file is None else json_file.with_suffix(".answers.jsonl")
    return evaluate(
        load(model, threads),
        found,
        methods,
        model=str(find_source(model)),
        answers=answers,
        chunk=chunk,
        progress=report,
    )


def _write(result: Result, json_file: Path | None, plot: Path | None, quiet: bool) -> None:
    from keyhole.evaluation.benchmarks import summarise
    from keyhole.evaluation.benchmarks.picture import draw

    if json_file is not None:
        common = result.settings | {"notes": result.notes}
        lines = [common | line.record() for line in summarise(result.rows)]
        write_text(json_file, json.dumps(lines, indent=1, ensure_ascii=False) + "\n")
    if plot is not None:
        write_whole(plot, lambda path: draw(result.rows, path))
    for path in (json_file, plot):
        if path is not None and not quiet:
            stderr().print(f"wrote {path}", highlight=False)


def _methods(text: str) -> list[str]:
    methods = list(dict.fromkeys(split_specs(text)))
    if not methods:
        raise ValueError("no method is given; give --method with one, such as --method pqcache")
    for method in methods:
        check_served(method)
    return methods


def _numbers(option: str, text: str, least: int, most: int) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    wrong = next((part for part in parts if not part.isdecimal() or not least <= int(part) <= most), None)
    if wrong is not None or not parts:
        raise ValueError(
            f"{option} {wrong if wrong is not None else text!r} is out of range; give whole numbers from "
            f"{least} to {most}, separated by commas"
        )
    return tuple(dict.fromkeys(map(int, parts)))


def _check_files(benchmark: Name, data: Path | None, json_file: Path | None, plot: Path | None) -> None:
    if data is None and benchmark != "niah":
        raise ValueError(f"{benchmark} reads files; give their directory with --data DIR")
    if data is not None and not data.is_dir():
        raise ValueError(
            f"--data {str(data)!r} is not a directory; give the one with the files of {benchmark}"
        )
    if plot is not None and benchmark not in _GRIDS:
        raise ValueError(f"--plot is for niah and needlebench; {benchmark} has no grid of lengths and depths")
    check_writable(json_file, "--json")
    check_writable(plot, "--plot")
    check_plot(plot)
