"""Passages of real text: a prefix that fills the cache, and the tokens that follow it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

_CHARACTERS = 16  # more than a token has in most text


class Source(Protocol):
    """A text and its name, as `keyhole.evaluation.texts` has them."""

    @property
    def name(self) -> str: ...

    @property
    def text(self) -> str: ...


class Passage(NamedTuple):
    """The first tokens of a text, int64 `[context + tokens]`, and what tells them from others."""

    name: str
    tokens: Tensor
    digest: str


def passages(
    sources: Iterable[Source], tokenizer: PreTrainedTokenizerBase, context: int, tokens: int
) -> list[Passage]:
    """The first `context + tokens` tokens of each text.

    Raises:
        ValueError: no text, two of one name, or texts that are too short, with the lengths of all of them.
    """
    found, short = [], []
    for source in sources:
        ids = _first(source.text, tokenizer, context + tokens)
        if len(ids) < context + tokens:
            short.append(f"{source.name} ({len(ids)})")
        else:
            found.append(Passage(source.name, torch.tensor(ids), _digest(ids)))
    names = [passage.name for passage in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if short:
        raise ValueError(
            f"a context of {context} tokens and {tokens} to predict take {context + tokens}, more than these "
            f"texts have: {', '.join(short)}; give longer texts, or a smaller context"
        )
    if twice:
        raise ValueError(f"several texts are called {twice[0]!r}; give each a name of its own")
    if not found:
        raise ValueError("there is no text to measure on; give at least one")
    return found


def _first(text: str, tokenizer: PreTrainedTokenizerBase, count: int) -> list[int]:
    """The first tokens of a text, at most `count`; only as much of it is read as that takes."""
    part = text[: _CHARACTERS * count]
    ids = tokenizer(part, verbose=False).input_ids[:count]
    # The end of a part may be cut inside a word.
    if len(ids) < count and len(part) < len(text):
        ids = tokenizer(text, verbose=False).input_ids[:count]
    return ids


def _digest(ids: list[int]) -> str:
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()[:16]
