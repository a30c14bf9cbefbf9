"""Options of `keyhole bench against`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

METHODS = ["dense", "pqcache(budget=0.05)"]
ENGINES = ["llama.cpp"]

Gguf = Annotated[
    str | None, typer.Option(help="GGUF file, or smollm2, that all engines read.", show_default="smollm2")
]
Random = Annotated[
    str | None,
    typer.Option("--shape", help="Write random weights of this public model's shape as the GGUF file."),
]
FileType = Annotated[str, typer.Option(help="With --shape: weights as q4_0, q4_1, q8_0, f16, bf16 or f32.")]
Engines = Annotated[
    list[str],
    typer.Option(
        "--engine",
        help="Engine to compare with; may be repeated: llama.cpp, llama.cpp(kv=q8_0, flash=off), "
        "transformers, transformers(attention=eager, dtype=bfloat16), vllm.",
    ),
]
Methods = Annotated[list[str], typer.Option("--method", help="Method of Keyhole; may be repeated.")]
Form = Annotated[
    str | None,
    typer.Option("--weights", help="How Keyhole holds the weights of the file.", show_default="in --dtype"),
]
Lengths = Annotated[
    str | None,
    typer.Option(
        help="Tokens in the cache, separated by commas.",
        show_default="512,2048,8064,32768,131072 within the model's range",
    ),
]
Computed = Annotated[
    int,
    typer.Option(min=0, help="Lengths up to this are computed from a prompt, and timed; others synthetic."),
]
Steps = Annotated[int, typer.Option(min=1, help="Steps of an engine that are timed in each round.")]
Data = Annotated[Path | None, typer.Option("--json", help="Write figures and conditions to this file.")]
Plot = Annotated[Path | None, typer.Option(help="Draw step time over length: .svg, .png or .pdf.")]
