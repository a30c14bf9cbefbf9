"""`keyhole bench memory`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keyhole.cli.bench import options
from keyhole.cli.options import Quiet, Threads

if TYPE_CHECKING:
    from keyhole.bench.memory import Memory

METHODS = ["dense", "snapkv(budget=4096)"]


def memory(
    shape: options.Shape = options.SHAPE,
    method: options.Methods = METHODS,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of the prompt.")] = 65_536,
    piece: Annotated[int, typer.Option(min=2, help="Prompt tokens computed at once.")] = 512,
    dtype: options.Dtype = "float32",
    layers: options.Layers = 0,
    threads: Threads = None,
    seed: options.Seed = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    quiet: Quiet = False,
) -> None:
    """Peak memory of the process while a long prompt is computed; weights are random."""
    import torch

    from keyhole.bench.memory import memory as measure
    from keyhole.bench.shapes import cut, shape_named
    from keyhole.cli.console import stdout
    from keyhole.core.files import write_text

    taken = cut(shape_named(shape), layers)
    count = threads or torch.get_num_threads()
    found = measure(taken, method, tokens=tokens, piece=piece, dtype=dtype, threads=count, seed=seed)
    if json_file is not None:
        write_text(json_file, json.dumps([asdict(one) for one in found], indent=1))
    if not quiet:
        stdout().print(f"{shape}, {taken.layers} layers, {dtype}: {tokens} tokens, {piece} at once")
    _print(found)


def _print(found: list[Memory]) -> None:
    from rich import box
    from rich.table import Table

    from keyhole.cli.console import stdout
    from keyhole.cli.table import amount

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    columns = (
        "method",
        "budget\nallows",
        "cache\nholds",
        "process grew\nat most by",
        "and in\nthe end by",
        "s",
    )
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left")
    for one in found:
        sizes = (amount(size) for size in (one.kept, one.held, one.peak, one.left))
        table.add_row(one.method, *sizes, f"{one.seconds:.0f}")
    stdout().print(table)
