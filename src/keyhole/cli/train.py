"""`keyhole train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from keyhole.cli import options
from keyhole.cli.outputs import check_writable
from keyhole.cli.training import Further, train_further, train_small
from keyhole.training.continued.settings import FILE as SETTINGS

_CHECKPOINT = "checkpoint.safetensors"
_FURTHER = "With --selection: "


def train(
    out: Annotated[
        Path, typer.Option(help="Directory of the run; the model is written to its subdirectory `model`.")
    ],
    selection: Annotated[
        str | None,
        typer.Option(
            help="Train a model further with this attention: `full`, or `infllm_v2` or `nosa` with their "
            "options.",
            show_default="train the embedded model from random weights",
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--from", help=f"{_FURTHER}the model, as --model.", show_default="the embedded model"),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            help=f"{_FURTHER}text file to train on; may be repeated.", show_default="texts of Keyhole"
        ),
    ] = None,
    tasks: Annotated[
        bool, typer.Option("--tasks", help=f"{_FURTHER}train on the tasks of the embedded model.")
    ] = False,
    steps: Annotated[
        int | None, typer.Option(min=1, help=f"{_FURTHER}optimiser steps.", show_default="300")
    ] = None,
    context: Annotated[
        list[int] | None,
        typer.Option(
            min=16, help=f"{_FURTHER}tokens of a row; several take turns by step.", show_default="4096"
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help=f"{_FURTHER}rows of a step.", show_default="1")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help=f"{_FURTHER}learning rate of the weights.", show_default="1e-4")
    ] = None,
    head_lr: Annotated[
        float | None,
        typer.Option(help=f"{_FURTHER}learning rate of the importance head of nosa.", show_default="0.05"),
    ] = None,
    sparse_prompts: Annotated[
        bool,
        typer.Option(
            "--sparse-prompts",
            help=f"{_FURTHER}let prompts read selected blocks, too, which Keyhole does not when it decodes.",
        ),
    ] = False,
    head_only: Annotated[
        bool, typer.Option("--head-only", help=f"{_FURTHER}leave the weights, train the head of nosa.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of new weights and training data.")] = 0,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Resume the run in that directory, with the options it was begun with."
        ),
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="3 steps, or 3 of each lesson, as a smoke test.")
    ] = False,
    threads: options.Threads = None,
    quiet: options.Quiet = False,
) -> None:
    """Train the model that comes with Keyhole, or any Llama-like model further with selected blocks."""
    further = Further(source, text, tasks, steps, context, batch, lr, head_lr, sparse_prompts, head_only)
    settings = further.settings(selection, seed, quick=quick)
    _check_run(out, resume=resume)
    if settings is None:
        if resume and (out / SETTINGS).exists():
            raise ValueError(f"the run in {str(out)!r} trains a model further; give its --selection")
        train_small(out, seed=seed, quick=quick, threads=threads, quiet=quiet)
    else:
        if resume:
            settings.check_same(out)
        train_further(settings, out, threads=threads, quiet=quiet)


def _check_run(out: Path, *, resume: bool) -> None:
    checkpoint = out / _CHECKPOINT
    check_writable(checkpoint, "--out")
    if checkpoint.exists() != resume:
        raise ValueError(
            f"there is no run to resume in {str(out)!r}; leave out --resume"
            if resume
            else f"{str(out)!r} already contains a run; give --resume, or another --out"
        )
