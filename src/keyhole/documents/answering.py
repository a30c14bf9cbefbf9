"""Answers behind a stored document."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from keyhole.cache.usage import Usage
from keyhole.documents.form import asked, behind
from keyhole.documents.opening import Opened
from keyhole.engines.transformers import attach, served_layers
from keyhole.engines.transformers.cache import request_of
from keyhole.generation.answers import options_of
from keyhole.generation.prompt import within_range
from keyhole.generation.reader import Answer, Options, Reader
from keyhole.methods.beyond import renumbers

TOGETHER = 32  # tokens of a question that share a selection


@dataclass(frozen=True)
class Asking:
    """How questions are answered; with `exact` their tokens read the whole document."""

    options: Options
    exact: bool = False

    @classmethod
    def of(
        cls,
        limit: int,
        temperature: float,
        top_p: float,
        seed: int,
        stop: str | Sequence[str],
        stream: Callable[[str], object] | None,
        *,
        exact: bool,
    ) -> Asking:
        """Raises ValueError for what is out of range."""
        return cls(options_of(limit, temperature, top_p, seed, stop, None, stream), exact)


def answer(opened: Opened, ids: np.ndarray, question: str, asking: Asking) -> Answer:
    """The answer to a question behind `ids`, which the opened cache holds all of."""
    more = behind(opened.tokenizer, opened.text, question + opened.tail)
    return continued(opened, ids, more, question, asking)


def continued(opened: Opened, ids: np.ndarray, more: list[int], question: str, asking: Asking) -> Answer:
    """The answer that follows the tokens `more` behind `ids`."""
    cache, prompt = opened.cache, asked(ids, more)
    for layer in served_layers(cache):
        layer.usage = Usage()  # that of this answer
    within_range(opened.model, opened.recipe, prompt, asking.options.limit)
    # Beyond a model's range one query's selection loses what the others ask for; prompts elect by many.
    shares = not asking.exact and not renumbers(opened.recipe)
    request = request_of(cache)
    if request is not None:
        request.together = shares
        request.prompt_length = prompt.length
    reader = Reader(opened.loaded, opened.recipe, asking.options, TOGETHER if shares else None, None)
    with attach(opened.model, opened.recipe):
        return reader.answer(question, prompt, cache, len(ids), together=shares)
