"""A document and a question, as a model wants to be asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyhole.cli.inputs import Loaded

if TYPE_CHECKING:
    from torch import Tensor


def build_prompt(loaded: Loaded, text: str, question: str, room: int) -> Tensor:
    """The tokens `[1, T]` of text and question, in the model's chat form if it has one.

    Raises:
        ValueError: with an answer of `room` tokens they go beyond the model's range, or are next to nothing.
    """
    from keyhole.generation.decoding import position_range

    model, tokenizer = loaded
    asked = f"{text.rstrip()}\n{question}" if question else text
    chat = bool(tokenizer.chat_template)
    if chat:
        message = [{"role": "user", "content": asked}]
        asked = str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
    tokens = tokenizer(asked, add_special_tokens=not chat, return_tensors="pt", verbose=False).input_ids
    limit, length = position_range(model), tokens.shape[1]
    if limit is not None and length + room > limit:
        raise ValueError(
            f"the prompt has {length} tokens and the answer up to {room}, beyond the model's range of "
            f"{limit}; shorten the prompt file or --max-new-tokens"
        )
    if length < 2:
        raise ValueError(f"the prompt has {length} tokens; give at least 2")
    return tokens.to(model.device)
