"""How a document is put to a model: document first, question behind, by its chat template if it has one.

What is read is all up to the question. It stays as it was read: when it would be put otherwise now, that is
said, with the first token that differs.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from keyhole.documents.text import check_text
from keyhole.generation.prompt import Asked, around_question, wants_chat, within_range
from keyhole.methods import Recipe

_BEFORE = 400  # characters before the question with which it is tokenised
_ROOM = 64  # positions that must be left for question and answer
_SHOWN = 24  # characters of a difference


class Form(NamedTuple):
    """What comes before a question and what behind, as text, and the ids of the former.

    Attributes:
        chat: whether by the tokenizer's chat template.
    """

    head: str
    tail: str
    ids: np.ndarray
    chat: bool

    @property
    def digest(self) -> str:
        """Of the head."""
        return _digest(self.head.encode())


def form_of(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    chat: bool | None = None,
    ids: np.ndarray | None = None,
) -> Form:
    """The form of a document's text; `ids` are those of the head, where they are known.

    Raises:
        ValueError: the chat template does not leave the document in front, or there is none.
    """
    by_template = wants_chat(tokenizer, chat)
    head, tail = around_question(tokenizer, text) if by_template else (f"{text.rstrip()}\n", "")
    if ids is None:
        found = tokenizer(head, add_special_tokens=not by_template, verbose=False).input_ids
        ids = np.asarray(found, np.int64)
    return Form(head, tail, ids, by_template)


def behind(tokenizer: PreTrainedTokenizerBase, text: str, more: str) -> list[int]:
    """The ids of what comes behind a document's text, tokenised with its end.

    Raises:
        ValueError: it has none.
    """
    check_text("the question", more)
    last = f"{text.rstrip()[-_BEFORE:]}\n"
    alone, joined = (_plain(tokenizer, text) for text in (last, last + more))
    # Where the tokenizer joins the end of the head with what follows, they are kept apart.
    ids = joined[len(alone) :] if joined[: len(alone)] == alone else _plain(tokenizer, more)
    if not ids:
        raise ValueError(f"the question {more!r} has no tokens; give some text")
    return ids


def asked(context: np.ndarray, question: list[int]) -> Asked:
    return Asked(_row(context), _row(np.asarray(question, np.int64)))


def fitting_recipe(model: PreTrainedModel, recipe: Recipe, ids: np.ndarray, *, beyond: bool) -> Recipe:
    """The recipe for a document with a question and an answer, as `within_range` finds it.

    Raises:
        ValueError: they are beyond the model's range, and the recipe or the model cannot read that.
    """
    return within_range(model, recipe, asked(ids, [0]), _ROOM, beyond=beyond)


def identity_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """What ids of a text depend on, and what comes around it."""
    template = tokenizer.chat_template
    return {"tokenizer": _digest(_tokenizer_bytes(tokenizer)), "template": _digest(str(template).encode())}


def difference(tokenizer: PreTrainedTokenizerBase, old: np.ndarray, new: np.ndarray) -> tuple[int, str]:
    """The first token at which two lists of ids differ, and both there, in words."""
    common = min(len(old), len(new))
    differing = np.nonzero(old[:common] != new[:common])[0]
    at = int(differing[0]) if len(differing) else common
    was, now = (_excerpt(tokenizer, ids[at:]) for ids in (old, new))
    return at, f"{now} where {was} was read"


def _excerpt(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray) -> str:
    return repr(str(tokenizer.decode(ids[:8].tolist()))[:_SHOWN]) if len(ids) else "the end"


def _plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def _row(ids: np.ndarray) -> Tensor:
    return torch.from_numpy(ids.astype(np.int64))[None]


def _tokenizer_bytes(tokenizer: PreTrainedTokenizerBase) -> bytes:
    named = Path(str(tokenizer.name_or_path)) / "tokenizer.json"
    if named.is_file():
        return named.read_bytes()
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    return (backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))).encode()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
