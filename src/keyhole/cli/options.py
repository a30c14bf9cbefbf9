"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[
    str | None,
    typer.Option(
        help="Hugging Face directory, hub name, GGUF file, or smollm2.", show_default="the embedded model"
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="int8 or int4: quantise the model's weights in groups of 32, once; as-is: keep the blocks of a "
        "GGUF file (Q8_0, Q4_0, Q4_1).",
        show_default="a GGUF file is dequantised, other models as they are",
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads.", show_default="all cores")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only the result.")]
BeyondRange = Annotated[
    bool,
    typer.Option(
        "--beyond-range",
        help="Read texts longer than the model's range by a recipe that renumbers positions: --method "
        "where it can, else tokenselect. Shorter texts are read by --method.",
    ),
]
