"""Single tokens as text and as bytes, for log probabilities."""

from __future__ import annotations

import re
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_PLAIN = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves


@lru_cache(maxsize=1 << 14)
def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """A token alone as text; a piece of a character is shown as U+FFFD."""
    return str(tokenizer.decode([token]))


@lru_cache(maxsize=1 << 14)
def token_bytes(tokenizer: PreTrainedTokenizerBase, token: int) -> list[int]:
    """The bytes of UTF-8 that a token stands for, those of a piece of a character too."""
    text = token_text(tokenizer, token)
    if "\ufffd" not in text:
        return list(text.encode())
    symbol = str(tokenizer.convert_ids_to_tokens(token))
    single = _BYTE.fullmatch(symbol)
    if single is not None:
        return [int(single[1], 16)]
    symbols = _byte_of_symbol()
    if all(char in symbols for char in symbol):
        return [symbols[char] for char in symbol]
    return list(text.encode())


@lru_cache(maxsize=1)
def _byte_of_symbol() -> dict[str, int]:
    """By character the byte that it stands for in byte-level vocabularies (GPT-2's table)."""
    others = [byte for byte in range(256) if byte not in _PLAIN]
    return {chr(byte): byte for byte in _PLAIN} | {chr(256 + at): byte for at, byte in enumerate(others)}
