"""A context and the questions about it as token ids, the context's the same for all questions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from keyhole.generation.decoding import position_range

_MARK = "\x01question\x01"  # no template and no document has it


class Asked(NamedTuple):
    """A prompt in two parts: token ids `context [1, T]`, and `question [1, Q]` behind it, Q at least 1."""

    context: Tensor
    question: Tensor

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
            return _asked(ids[:-1], ids[-1:])
        head, whole = self._ids, self._encode(self._head + question + self._tail, special=self._special)
        if whole[: len(head)] == head:
            behind = whole[len(head) :]
        else:
            # The tokenizer joins the end of the context with the question: they are kept apart.
            behind = self._encode(question + self._tail, special=False)
        if not behind:
            raise ValueError(f"the question {question!r} has no tokens; give some text")
        return _asked(head, behind)

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


def check_range(model: PreTrainedModel, asked: Asked, room: int) -> None:
    """Raise ValueError unless a prompt and an answer of `room` tokens are within the model's positions."""
    limit = position_range(model)
    if limit is not None and asked.length + room > limit:
        raise ValueError(
            f"the prompt has {asked.length:,} tokens and the answer up to {room:,}, together beyond the "
            f"model's range of {limit:,} positions; shorten the context by {asked.length + room - limit:,} "
            "tokens, lower max_new_tokens, or use a model with a longer range"
        )


def _asked(context: list[int], question: list[int]) -> Asked:
    return Asked(torch.tensor([context], dtype=torch.long), torch.tensor([question], dtype=torch.long))


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
