"""`keyhole private`: secure computation. `export` needs Keyhole's environment, the others that of SPU."""

from __future__ import annotations

import typer

from keyhole.cli.private.bench import bench
from keyhole.cli.private.export import export
from keyhole.cli.private.run import check, run

app = typer.Typer(
    name="private",
    no_args_is_help=True,
    help="Decoding under secure multi-party computation (SPU): secret prompt, secret weights, open tokens.",
)
for command in (export, run, check, bench):
    app.command()(command)
