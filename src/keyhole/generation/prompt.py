"""A context and the questions about it as token ids, the context's the same for all questions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from keyhole.core.errors import SpecError
from keyhole.engines.transformers.far import check_far
from keyhole.engines.transformers.sizes import position_range
from keyhole.methods.beyond import beyond_recipe, check_beyond
from keyhole.methods.recipe import Recipe

_MARK = "\x01question\x01"  # no template and no document has it


class Written(NamedTuple):
    """A prompt as the text that its tokens were made of, and where the document is in it, in characters."""

    text: str
    document: tuple[int, int]


class Asked(NamedTuple):
    """A prompt in two parts: token ids `context [1, T]`, and `question [1, Q]` behind it, Q at least 1.

    `written` is known where a recorder may ask for it.
    """

    context: Tensor
    question: Tensor
    written: Written | None = None

    @property
    def length(self) -> int:
        return self.context.shape[1] + self.question.shape[1]


class PromptForm:
    """How a tokenizer's model is asked: by its chat template if it has one, else by text and question.

    The text up to the question is tokenised alone, so that its ids do not depend on the question.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context: str, *, chat: bool) -> None:
        self._tokenizer, self._special = tokenizer, not chat
        self._head, self._tail = (
            around_question(tokenizer, context) if chat else (f"{context.rstrip()}\n", "")
        )
        self._whole = context  # where nothing is asked
        self._ids = self._encode(self._head, special=self._special)

    def ask(self, question: str) -> Asked:
        """The prompt of a question; an empty one continues the context."""
        if not question and self._special:
            ids = self._encode(self._whole, special=True)
            if len(ids) < 2:
                raise ValueError(f"the prompt has {len(ids)} tokens; give at least 2")
            return _asked(ids[:-1], ids[-1:], written_as(self._whole, self._whole))
        head, whole = self._ids, self._encode(self._head + question + self._tail, special=self._special)
        if whole[: len(head)] == head:
            behind = whole[len(head) :]
        else:
            # The tokenizer joins the end of the context with the question: they are kept apart.
            behind = self._encode(question + self._tail, special=False)
        if not behind:
            raise ValueError(f"the question {question!r} has no tokens; give some text")
        text = self._head + question + self._tail
        return _asked(head, behind, written_as(text, self._whole))

    def _encode(self, text: str, *, special: bool) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=special, verbose=False).input_ids)


def wants_chat(tokenizer: PreTrainedTokenizerBase, chat: bool | None) -> bool:
    """Whether prompts take the chat form: as asked, by default if there is a template.

    Raises:
        ValueError: it is asked for, and the tokenizer has none.
    """
    has = bool(tokenizer.chat_template)
    if chat and not has:
        raise ValueError(
            "the tokenizer has no chat template; leave out chat=True, or set tokenizer.chat_template"
        )
    return has if chat is None else chat


def within_range(
    model: PreTrainedModel, recipe: Recipe, asked: Asked, room: int, *, beyond: bool = False
) -> Recipe:
    """The recipe for a prompt and an answer of `room` tokens: itself where they are in the model's range.

    Args:
        beyond: take a recipe that can read longer texts where they are not; otherwise `recipe` must be one.

    Raises:
        ValueError: they are not, and the recipe or the model cannot do that.
    """
    limit, tokens = position_range(model), asked.length + room
    if limit is None or tokens <= limit:
        return recipe
    try:
        found = beyond_recipe(recipe, limit, tokens) if beyond else recipe
        check_beyond(found, limit, tokens)
    except SpecError as error:
        raise SpecError(
            f"the prompt has {asked.length:,} tokens and the answer up to {room:,}, together beyond "
            f"the model's range of {limit:,} positions; shorten the context by {tokens - limit:,} tokens "
            f"or lower max_new_tokens; beyond the range: {error}"
        ) from error
    check_far(model, tokens)
    return found


def written_as(text: str, document: str) -> Written:
    """The text of a prompt in which a document stands, without the white space at its end."""
    document = document.rstrip()
    begin = max(text.find(document), 0)
    return Written(text, (begin, begin + len(document)))


def _asked(context: list[int], question: list[int], written: Written) -> Asked:
    before, behind = (torch.tensor([ids], dtype=torch.long) for ids in (context, question))
    return Asked(before, behind, written)


def around_question(tokenizer: PreTrainedTokenizerBase, context: str) -> tuple[str, str]:
    """The chat form of context and question: what comes up to the question, and what behind it."""
    message = [{"role": "user", "content": f"{context.rstrip()}\n{_MARK}"}]
    text = str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
    head, *tails = text.split(_MARK)
    if len(tails) != 1:
        raise ValueError(
            f"the chat template repeats the user's message {len(tails)} times, so the context cannot be read "
            "once; give chat=False (--raw)"
        )
    return head, tails[0]
