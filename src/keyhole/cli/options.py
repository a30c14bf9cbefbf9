"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[
    str | None,
    typer.Option(help="Hugging Face model directory or hub name.", show_default="the shipped model"),
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="all cores")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Nothing but the result.")]
