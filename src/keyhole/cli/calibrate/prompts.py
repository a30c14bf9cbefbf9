"""Texts as the prompts that a model is calibrated on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from torch import Tensor

    from keyhole.generation import Loaded

_MEASURED = 8  # tables are made of so many of the texts that are shipped, the first

TextFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--text",
        help="Text file to calibrate on; may be repeated. Without one, the five texts that come with Keyhole "
        "and are not used by `keyhole compare`.",
        show_default=False,
    ),
]


def texts_of(files: list[Path] | None) -> list[str]:
    """What the files hold, or the shipped texts that nothing is measured on."""
    from keyhole.cli.inputs import read_text

    if files:
        return [read_text(str(path)) for path in files]
    from keyhole.evaluation.texts import texts

    return [one.text for one in texts()[_MEASURED:]]


def prompts_of(loaded: Loaded, texts: list[str], tokens: int, context: int) -> list[Tensor]:
    """Token ids `[1, T]` of texts, cut at the context: at most `tokens` in total, as many of each text."""
    prompts = []
    for left, text in zip(range(len(texts), 0, -1), texts, strict=True):
        ids = loaded.tokenizer(text, return_tensors="pt", verbose=False).input_ids[:, : -(-tokens // left)]
        tokens -= ids.shape[1]
        prompts += [part for part in ids.split(context, dim=1) if part.shape[1]]
    return prompts
