"""Options of `keyhole bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

METHOD = "pqcache"
SHAPE = "Llama-3.2-1B"
TOKENS = 131_072
READ_TOKENS = 2048
ROUNDS = 15

Tokens = Annotated[int, typer.Option(min=1, help="Tokens in the cache.")]
QueryHeads = Annotated[int, typer.Option(min=1, help="Query heads.")]
KVHeads = Annotated[int, typer.Option("--kv-heads", min=1, help="KV heads.")]
HeadDim = Annotated[int, typer.Option(min=1, help="Size of a head.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
Method = Annotated[str, typer.Option(help="Method with options, such as pqcache(subspaces=16, bits=4).")]
Methods = Annotated[list[str], typer.Option("--method", help="Method; may be repeated, or `all`.")]
ReadTokens = Annotated[
    int,
    typer.Option(
        min=0, help="Tokens read per step, in addition to sinks and window; 0 for the method's own budget."
    ),
]
Impl = Annotated[str, typer.Option(help="Implementation: auto, native or reference.")]
Shape = Annotated[str, typer.Option(help="Public model whose shape to use.")]
Weights = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Hugging Face directory, hub name, GGUF file, or smollm2: its weights, on real text.",
        show_default="random weights",
    ),
]
FORMS = ("int8", "int4")
Form = Annotated[
    str | None,
    typer.Option("--weights", help="int8 or int4: pack the weights.", show_default="those of --dtype"),
]
Text = Annotated[
    Path | None, typer.Option(help="Text file to read.", show_default="the texts of the package")
]
Layers = Annotated[int, typer.Option(min=0, help="Limit the number of layers; 0 for all.")]
Rounds = Annotated[int, typer.Option(min=1, help="Number of rounds; the median is reported.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the synthetic data.")]
Json = Annotated[
    Path | None,
    typer.Option(
        "--json", help="Write the rows to this file, and a description of the machine to FILE.conditions."
    ),
]
