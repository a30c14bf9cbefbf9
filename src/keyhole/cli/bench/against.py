"""`keyhole bench against`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from keyhole.cli.bench import against_inputs as inputs
from keyhole.cli.bench import against_options as mine
from keyhole.cli.bench import options
from keyhole.cli.bench.run import command_line
from keyhole.cli.options import Quiet, Threads
from keyhole.core.files import write_whole

if TYPE_CHECKING:
    from keyhole.bench.against.figures import Measured


def against(
    context: typer.Context,
    gguf: mine.Gguf = None,
    shape: mine.Random = None,
    file_type: mine.FileType = "q4_1",
    layers: options.Layers = 0,
    engine: mine.Engines = mine.ENGINES,
    method: mine.Methods = mine.METHODS,
    dtype: options.Dtype = "float32",
    weights: mine.Form = None,
    lengths: mine.Lengths = None,
    prompt: mine.Computed = 2048,
    text: options.Text = None,
    rounds: options.Rounds = 5,
    steps: mine.Steps = 8,
    threads: Threads = None,
    json_file: mine.Data = None,
    plot: mine.Plot = None,
    quiet: Quiet = False,
) -> None:
    """Prompts, decode steps and memory of Keyhole and other engines: the same file and threads, in turns."""
    given = {"gguf": gguf, "shape": shape, "weights": weights}
    inputs.check(context, given, method, {"--json": json_file, "--plot": plot})
    wanted, engines = inputs.numbers(lengths), inputs.installed(engine)
    words = inputs.prompt_text(text, shape)
    if shape is None:
        inputs.given_file(gguf)
    from keyhole.bench.against.figures import write_figures
    from keyhole.bench.against.run import Task, run
    from keyhole.cli.console import progress
    from keyhole.tuning.timing import using_threads

    with using_threads(threads or 0), progress(quiet) as report:
        import torch

        task = Task(
            file=inputs.model_file(gguf, shape, file_type, layers),
            text=words,
            engines=engines,
            methods=tuple(dict.fromkeys(method)),
            dtype=dtype,
            loading=inputs.loading(weights),
            lengths=wanted,
            prompt=prompt,
            rounds=rounds,
            steps=steps,
            threads=torch.get_num_threads(),
        )
        measured = run(task, report)
    measured.conditions["command"] = command_line(context)
    if json_file is not None:
        write_figures(json_file, measured)
    _show(measured, plot, quiet)


def _show(measured: Measured, plot: Path | None, quiet: bool) -> None:
    from keyhole.bench.against.plot import draw
    from keyhole.bench.against.tables import table
    from keyhole.cli.console import stderr, stdout

    known = measured.conditions
    title = f"{known['file']}, {known['threads']} threads, {known['cpu']}"
    if plot is not None:
        write_whole(plot, lambda temporary: draw(measured.figures, temporary, title=title))
    stdout().print(table(measured.figures, title))
    about = [f"{name}: {line}" for name, line in known["engines"].items()]
    for note in [] if quiet else [*about, *known["notes"]]:
        stderr().print(f"- {note}", highlight=False, markup=False)
