"""Log probabilities in the forms of chat, completions and responses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from keyhole.serving.http.token_text import token_bytes, token_text
from keyhole.serving.requests import Logprob

_LEAST = -9999.0  # what OpenAI's API says of a token without probability, for which JSON has no number


class Spelled:
    """Log probabilities of generated tokens, with the tokens spelled out."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def where_asked(cls, tokenizer: PreTrainedTokenizerBase, logprobs: int | None) -> Spelled | None:
        """None where a request asks for no log probabilities."""
        return None if logprobs is None else cls(tokenizer)

    def chat(self, logprobs: Sequence[Logprob]) -> list[dict[str, Any]]:
        """The items of `logprobs.content`, also of an `output_text` of the Responses API."""
        return [
            self._one(each.token, each.logprob) | {"top_logprobs": [self._one(*other) for other in each.top]}
            for each in logprobs
        ]

    def completion(
        self, logprobs: Sequence[Logprob], spans: Sequence[tuple[int, int]]
    ) -> dict[str, list[Any]]:
        """`logprobs` of a completion, or of a piece of it.

        Args:
            spans: where in the text the piece of each token begins and ends.
        """
        tokens = [token_text(self._tokenizer, each.token) for each in logprobs]
        offsets = _offsets(tokens, spans)
        tops = [
            {token_text(self._tokenizer, token): _finite(value) for token, value in each.top}
            for each in logprobs
        ]
        values = [_finite(each.logprob) for each in logprobs]
        return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}

    def _one(self, token: int, logprob: float) -> dict[str, Any]:
        return {
            "token": token_text(self._tokenizer, token),
            "logprob": _finite(logprob),
            "bytes": token_bytes(self._tokenizer, token),
        }


def _offsets(tokens: list[str], spans: Sequence[tuple[int, int]]) -> list[int]:
    """Where tokens begin; several that make one character are of one piece, and stay within it."""
    offsets: list[int] = []
    at, last = 0, None
    for token, span in zip(tokens, spans, strict=True):
        at = span[0] if span != last else at
        offsets.append(min(at, span[1]))
        at, last = at + len(token), span
    return offsets


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST) if math.isfinite(logprob) else _LEAST
