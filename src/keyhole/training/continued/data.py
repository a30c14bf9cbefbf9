"""What a model is trained on: rows of a text, or of the embedded tasks; each is drawn anew for every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from keyhole.evaluation.haystack import Haystack
from keyhole.training.batches import LABELS
from keyhole.training.forms import Phrasebook
from keyhole.training.lessons import build_lessons

_LISTS = 0.2  # share of the rows of the tasks that are given to the counting ones
_MOST_LOGITS = 2**26  # of one row, 256 MiB
TEXT = LABELS.index("form")


class Row(NamedTuple):
    """Attributes:
    tokens: int64 [1, L].
    asked: int64 [1, L], what a token answers, as in `training.batches`; 0 has no loss.
    """

    tokens: Tensor
    asked: Tensor


class Source(Protocol):
    """A kind of rows."""

    def row(self, rng: np.random.Generator, length: int) -> Row: ...


class Tasks:
    """Rows of the embedded tasks, each with many questions, whose answers are asked.

    Raises:
        ValueError: the tokenizer splits the words that the tasks are made of.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        try:
            Phrasebook(tokenizer)
        except ValueError as error:
            raise ValueError(
                f"the tasks need the tokenizer of the embedded model ({error}); train this one with --text"
            ) from error
        self._lessons = build_lessons(tokenizer, Haystack.from_environment("train"))

    def row(self, rng: np.random.Generator, length: int) -> Row:
        lesson = self._lessons["lists" if rng.random() < _LISTS else "tasks"]
        made = lesson.row(rng, length)
        return Row(torch.tensor([made.tokens]), torch.tensor([made.asked]))


class Texts:
    """Runs of texts. Each token is predicted, or as many as have 256 MiB of logits.

    Args:
        halved: only tokens of a row's second half are predicted, as the first one is a prompt.

    Raises:
        ValueError: the texts are shorter than the longest row.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], longest: int, *, halved: bool
    ) -> None:
        ids = [tokenizer(text, add_special_tokens=False, verbose=False).input_ids for text in texts]
        self._tokens = torch.tensor([token for text in ids for token in text])
        if len(self._tokens) < longest:
            raise ValueError(
                f"the texts are {len(self._tokens)} tokens long, less than one row of {longest}; give more "
                "--text, or a smaller --context"
            )
        self._asked, self._halved = max(1, _MOST_LOGITS // len(tokenizer)), halved

    def row(self, rng: np.random.Generator, length: int) -> Row:
        first = int(rng.integers(len(self._tokens) - length + 1))
        asked = torch.zeros(1, length, dtype=torch.int64)
        begin = length // 2 if self._halved else 1
        count = min(self._asked, length - begin)
        asked[0, begin + rng.choice(length - begin, count, replace=False)] = TEXT
        return Row(self._tokens[None, first : first + length], asked)
