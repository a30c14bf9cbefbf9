"""`keyhole calibrate` and its commands, one for each method that is fitted to a model."""

from __future__ import annotations

import typer

from keyhole.cli.calibrate.a2ats import a2ats
from keyhole.cli.calibrate.chess import chess
from keyhole.cli.calibrate.delta import delta
from keyhole.cli.calibrate.sale import sale

app = typer.Typer(
    name="calibrate",
    no_args_is_help=True,
    help="Fit a method's codebooks, thresholds or layers to a model, once, on sample text.",
)


for command in (a2ats, chess, delta, sale):
    app.command()(command)
