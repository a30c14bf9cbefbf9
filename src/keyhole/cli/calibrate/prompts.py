"""Texts as the prompts that a model is calibrated on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from keyhole.generation import Loaded


def prompts_of(loaded: Loaded, texts: list[str], tokens: int, context: int) -> list[Tensor]:
    """Token ids `[1, T]` of texts in order, cut at the context, at most `tokens` in total."""
    prompts = []
    for text in texts:
        ids = loaded.tokenizer(text, return_tensors="pt", verbose=False).input_ids[:, :tokens]
        tokens -= ids.shape[1]
        prompts += [part for part in ids.split(context, dim=1) if part.shape[1]]
    return prompts
