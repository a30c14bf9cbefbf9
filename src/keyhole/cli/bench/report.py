"""`keyhole bench report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    files: Annotated[list[Path], typer.Argument(help="Files written by --json.")],
) -> None:
    """Print result files as Markdown, as in docs/benchmarks.md."""
    from keyhole.bench.report import report as page

    typer.echo(page(files), nl=False)
