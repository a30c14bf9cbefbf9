"""Answers behind a stored document."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from keyhole.cache.usage import Usage
from keyhole.documents.form import asked, behind, form_of
from keyhole.documents.opening import Opened
from keyhole.engines.transformers import KeyholeCache, attach, served_layers
from keyhole.engines.transformers.cache import request_of
from keyhole.generation.answers import options_of
from keyhole.generation.prompt import Written, within_range, written_as
from keyhole.generation.reader import Answer, AnswerRecorder, Options, Reader
from keyhole.methods import Recipe
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
        recorder: AnswerRecorder | None = None,
    ) -> Asking:
        """Raises ValueError for what is out of range."""
        return cls(options_of(limit, temperature, top_p, seed, stop, None, stream, recorder), exact)


def answer(opened: Opened, ids: np.ndarray, question: str, asking: Asking) -> Answer:
    """The answer to a question behind `ids`, which the opened cache holds all of."""
    said = question + opened.tail
    more = behind(opened.tokenizer, opened.text, said)
    written = None
    if asking.options.recorder is not None:
        head = form_of(opened.tokenizer, opened.text, opened.chat, ids=opened.ids).head
        written = written_as(head + said, opened.text)
    return continued(opened, ids, more, question, asking, written)


def continued(
    opened: Opened,
    ids: np.ndarray,
    more: list[int],
    question: str,
    asking: Asking,
    written: Written | None = None,
) -> Answer:
    """The answer that follows the tokens `more` behind `ids`; both are `written`, where that is known."""
    prompt = asked(ids, more)._replace(written=written)
    within_range(opened.model, opened.recipe, prompt, asking.options.limit)
    shares = begin_answer(opened.cache, opened.recipe, prompt.length, exact=asking.exact)
    reader = Reader(opened.loaded, opened.recipe, asking.options, TOGETHER if shares else None, None)
    with attach(opened.model, opened.recipe):
        return reader.answer(question, prompt, opened.cache, len(ids), together=shares)


def begin_answer(cache: KeyholeCache, recipe: Recipe, length: int, *, exact: bool) -> bool:
    """Let what follows in a document's cache be one answer's, behind a prompt of `length` tokens.

    Returns:
        Whether the tokens of its question share selections. Beyond a model's range they do not: one query's
        selection loses what the others ask for, and prompts elect by many.
    """
    for layer in served_layers(cache):
        layer.usage = Usage()
    shares = not exact and not renumbers(recipe)
    request = request_of(cache)
    if request is not None:
        request.together, request.prompt_length = shares, length
    return shares
