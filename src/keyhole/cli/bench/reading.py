"""A model and a prompt of real text to time it on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from keyhole.cli.inputs import load, read_text

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def read(
    model: str | None, text: Path | None, tokens: int, threads: int | None
) -> tuple[PreTrainedModel, Tensor]:
    """A model, and the first tokens `[1, T]` of a file or of the shipped texts.

    Raises:
        ValueError: as `load` and `read_text`, and for a text that is too short.
    """
    from keyhole.evaluation.texts import texts

    words = "\n\n".join(each.text for each in texts()) if text is None else read_text(str(text))
    loaded = load(model, threads)
    ids = loaded.tokenizer(words, return_tensors="pt", verbose=False).input_ids[:, :tokens]
    if ids.shape[1] < tokens:
        raise ValueError(f"the text has {ids.shape[1]} tokens, not {tokens}; give --tokens or another --text")
    return loaded.model, ids
