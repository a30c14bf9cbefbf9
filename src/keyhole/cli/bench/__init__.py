"""`keyhole bench` and its commands. Their modules import torch only when they run."""

from __future__ import annotations

import typer

from keyhole.cli.bench.against import against
from keyhole.cli.bench.gpu import gpu
from keyhole.cli.bench.layer import build, decode, gather, paged, scan
from keyhole.cli.bench.matrix import gemv, products
from keyhole.cli.bench.memory import memory
from keyhole.cli.bench.model import prompt, step
from keyhole.cli.bench.offload import offload
from keyhole.cli.bench.prefill import prefill
from keyhole.cli.bench.report import report

app = typer.Typer(
    name="bench",
    no_args_is_help=True,
    help="Time operations, a layer's decode step and whole models against the best dense calls. Results are "
    "checked first; nothing is reported for an operation that is wrong.",
)

of_layers = (decode, paged, scan, gather, gemv, products, build, prefill)
for command in (*of_layers, step, prompt, memory, offload, against, gpu, report):
    app.command()(command)


@app.command(hidden=True, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def calibrate() -> None:
    """Renamed; refused with the new name."""
    raise ValueError("`keyhole bench calibrate` is now `keyhole tune`, which takes no method or shape")
