"""Tokenizers beside that of the thread that owns the model, and texts that are too long for any."""

from __future__ import annotations

import copy
from threading import Lock

from transformers import PreTrainedTokenizerBase

from keyhole.serving.requests import TooLongError


class OwnTokenizer:
    """A copy of a tokenizer that one thread at a time can use: `with own as tokenizer`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._copy, self._lock = copy.deepcopy(tokenizer), Lock()

    def __enter__(self) -> PreTrainedTokenizerBase:
        self._lock.acquire()
        return self._copy

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def longest_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Characters that one token can stand for."""
    return max(map(len, tokenizer.get_vocab()), default=1)


def check_characters(characters: int, most: int | None, longest: int) -> None:
    """Refuse a text before it is tokenised, which takes long for a long one.

    Args:
        most: tokens that it can have; None bounds nothing.
        longest: characters that one token can stand for.

    Raises:
        TooLongError: it has more tokens than that in any case.
    """
    if most is not None and characters > most * longest:
        raise TooLongError(
            f"the text has {characters:,} characters, which is more than {most:,} tokens, the most that its "
            "method can be given here; shorten it"
        )
