"""`keyhole train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keyhole.cli import options
from keyhole.cli.outputs import check_writable

_QUICK_STEPS = 3


def train(
    out: Annotated[
        Path, typer.Option(help="Directory of the run; the model is written to its subdirectory `model`.")
    ],
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and training data.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in that directory.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help=f"{_QUICK_STEPS} steps per lesson, as a smoke test.")
    ] = False,
    threads: options.Threads = None,
    quiet: options.Quiet = False,
) -> None:
    """Train the small model that comes with Keyhole."""
    checkpoint = out / "checkpoint.safetensors"
    check_writable(checkpoint, "--out")
    if checkpoint.exists() != resume:
        raise ValueError(
            f"there is no run to resume in {str(out)!r}; leave out --resume"
            if resume
            else f"{str(out)!r} already contains a run; give --resume, or another --out"
        )
    from dataclasses import replace

    from keyhole.cli import console
    from keyhole.training.config import TrainConfig
    from keyhole.training.trainer import train as run

    config = TrainConfig(seed=seed)
    if quick:
        stages = tuple(
            replace(stage, max_steps=min(stage.max_steps, _QUICK_STEPS)) for stage in config.stages
        )
        config = replace(config, stages=stages, log_every=1)
    if threads is not None:
        config = replace(config, threads=threads)
    longest = {stage.name: stage.max_steps for stage in config.stages}
    with console.progress(quiet) as report:
        folder = run(
            config,
            out,
            report=lambda line: report(
                f"{line['stage']}: {line['accuracy']:.0%} of answers right",
                line["step"],
                longest[line["stage"]],
            ),
        )
    console.stdout().print(str(folder), highlight=False, soft_wrap=True)
