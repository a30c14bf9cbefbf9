"""Needles at set depths of a text of set length."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from keyhole.evaluation.fitting import count_tokens

_ROUNDS = 8
_LONG_TOKEN = 16  # characters, at most in the mean of a text
_SENTENCE_END = re.compile(r"[.!?]['\"”’)]?\s|[。！？]|\n\n")


def hide(
    tokenizer: PreTrainedTokenizerBase,
    haystack: str,
    needles: Sequence[str],
    depths: Sequence[int],
    length: int,
    prompt: Callable[[str], str],
) -> str:
    """The context that makes `prompt(context)` at most `length` tokens long, and close to it.

    Args:
        haystack: text to take a beginning of, repeated where it is too short.
        needles: put behind the sentence that ends last before their depths.
        depths: of the needles, in percent of the context's tokens.

    Raises:
        ValueError: the needles and the question alone are longer.
    """
    whole = tokenizer(haystack[: _LONG_TOKEN * length], add_special_tokens=False, verbose=False).input_ids
    if not whole:
        raise ValueError("the text to hide needles in has no tokens")
    empty = count_tokens(tokenizer, prompt("".join(needles)))
    room = length - empty
    if room < 0:
        raise ValueError(f"a prompt of {length} tokens has no room; needle and question take {empty}")
    for _ in range(_ROUNDS):
        tokens = (whole * (room // len(whole) + 1))[:room]
        context = _placed(str(tokenizer.decode(tokens)), needles, depths)
        excess = count_tokens(tokenizer, prompt(context)) - length
        if excess <= 0:
            return context
        room = max(0, room - excess)
    return "".join(needles)


def _placed(text: str, needles: Sequence[str], depths: Sequence[int]) -> str:
    ends = [found.end() for found in _SENTENCE_END.finditer(text)]
    parts, last = [], 0
    for depth, needle in sorted(zip(depths, needles, strict=True), key=lambda pair: pair[0]):
        wanted = len(text) * depth // 100
        cut = wanted if depth == 100 else max((end for end in ends if end <= wanted), default=0)
        parts += [text[last : max(cut, last)], needle]
        last = max(cut, last)
    return "".join([*parts, text[last:]])
