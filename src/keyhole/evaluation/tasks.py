"""Long-context retrieval tasks in the manner of RULER (Hsieh et al. 2024).

Every task is text, so it runs with any Hugging Face tokenizer and model. A question ends where the wording
of the context goes on with the answer, so that a model without instruction tuning can be asked too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from transformers import PreTrainedTokenizerBase

from keyhole.evaluation.facts import CHAT_TOKENS, hide
from keyhole.evaluation.fitting import bury, count_tokens, largest_fit
from keyhole.evaluation.haystack import Haystack
from keyhole.evaluation.phrases import (
    CODED_HEAD,
    COMMON,
    COMMON_QUESTION,
    FREQUENT_QUESTION,
    LIST_HEAD,
    OTHERS,
    RATIO,
    TEXT_HEAD,
    ask_all,
    ask_chain,
    ask_one,
    ask_several,
    chain,
    draw_common,
    draw_frequent,
    draw_keys,
    draw_names,
    draw_values,
    needle,
    numbered,
    reply_all,
    reply_chain,
    reply_list,
    reply_several,
)
from keyhole.evaluation.words import CODED_WORDS, NOUNS


@dataclass(frozen=True)
class Turn:
    """A question, what its answer must name, and the tokens an answer may take."""

    question: str
    answers: tuple[str, ...]
    max_new_tokens: int


@dataclass(frozen=True)
class Sample(Turn):
    """One question about a context. The prompt is context + question.

    Attributes:
        later: a question that is asked when the first one is answered, and then is the one that counts.
    """

    context: str = ""
    later: Turn | None = None

    @property
    def prompt(self) -> str:
        return self.context + self.question


@dataclass(frozen=True)
class Task:
    """`make(rng, haystack, tokenizer, tokens)` gives a Sample whose prompt fills at most `tokens` tokens."""

    name: str
    description: str
    build: Callable[[np.random.Generator, Haystack, PreTrainedTokenizerBase, int], Sample]

    def make(
        self, rng: np.random.Generator, haystack: Haystack, tokenizer: PreTrainedTokenizerBase, tokens: int
    ) -> Sample:
        """Raises ValueError when the task does not fit into `tokens` tokens."""
        try:
            return self.build(rng, haystack, tokenizer, tokens)
        except ValueError as error:
            raise ValueError(f"task {self.name!r} {error}") from None


def score(asked: Turn, generated: str) -> float:
    """The share of the expected strings found in the generated text, in any order and case."""
    text = generated.lower()
    return sum(answer.lower() in text for answer in asked.answers) / len(asked.answers)


def _sample(tokenizer, context: str, question: str, answers: Sequence[str], reply: str) -> Sample:
    length = count_tokens(tokenizer, reply)
    return Sample(question, tuple(answers), length + length // 4 + 4, context=context)


def _needles(rng, haystack, tokenizer, tokens, *, count: int) -> Sample:
    keys, values = draw_keys(rng, count), draw_values(rng, count, haystack.numbers)
    needles = [needle(k, v) for k, v in zip(keys, values, strict=True)]
    question = ask_one(keys[0])
    context = bury(rng, needles, haystack, tokenizer, tokens, head=TEXT_HEAD, question=question)
    return _sample(tokenizer, context, question, values[:1], f" {values[0]}.")


def _multi_turn(rng, haystack, tokenizer, tokens, *, count: int = 16) -> Sample:
    keys, values = draw_keys(rng, count), draw_values(rng, count, haystack.numbers)
    needles = [needle(k, v) for k, v in zip(keys, values, strict=True)]
    question = ask_one(keys[0])
    context = bury(rng, needles, haystack, tokenizer, tokens, head=TEXT_HEAD, question=question)
    first = _sample(tokenizer, context, question, values[:1], f" {values[0]}.")
    later = Turn(ask_one(keys[1]), (values[1],), first.max_new_tokens)
    return replace(first, later=later)


def _multivalue(rng, haystack, tokenizer, tokens, *, several: int = 4, sets: int = 3) -> Sample:
    keys, values = draw_keys(rng, sets), draw_values(rng, several * sets, haystack.numbers)
    owned = [values[i * several : (i + 1) * several] for i in range(sets)]
    needles = [statement for key, own in zip(keys, owned, strict=True) for statement in numbered(key, own)]
    question = ask_all(keys[0])
    context = bury(rng, needles, haystack, tokenizer, tokens, head=TEXT_HEAD, question=question)
    return _sample(tokenizer, context, question, owned[0], reply_all(keys[0], owned[0]))


def _multiquery(rng, haystack, tokenizer, tokens, *, asked: int = 4, count: int = 16) -> Sample:
    keys, values = draw_keys(rng, count), draw_values(rng, count, haystack.numbers)
    needles = [needle(k, v) for k, v in zip(keys, values, strict=True)]
    question = ask_several(keys[:asked])
    context = bury(rng, needles, haystack, tokenizer, tokens, head=TEXT_HEAD, question=question)
    return _sample(tokenizer, context, question, values[:asked], reply_several(keys[:asked], values[:asked]))


def _variables(rng, haystack, tokenizer, tokens, *, names: int = 4, chains: int = 3) -> Sample:
    every, values = draw_names(rng, names * chains), draw_values(rng, chains, haystack.numbers)
    assigned = [chain(value, every[i * names : (i + 1) * names]) for i, value in enumerate(values)]
    needles = [statement for statements in assigned for statement in statements]
    first = every[:names]
    question = ask_chain(first[-1])
    context = bury(rng, needles, haystack, tokenizer, tokens, head=TEXT_HEAD, question=question)
    answers = [*reversed(first[:-1]), values[0]]
    return _sample(tokenizer, context, question, answers, reply_chain(values[0], first))


def _common_words(rng, _haystack, tokenizer, tokens) -> Sample:
    return _list_task(rng, tokenizer, tokens, draw_common, NOUNS, LIST_HEAD, COMMON_QUESTION)


def _frequent_words(rng, _haystack, tokenizer, tokens) -> Sample:
    return _list_task(rng, tokenizer, tokens, draw_frequent, CODED_WORDS, CODED_HEAD, FREQUENT_QUESTION)


def _fact(rng, _haystack, tokenizer, tokens, *, chat: bool = False) -> Sample:
    context, question, fact = hide(rng, Haystack.shipped(), tokenizer, tokens, chat=chat)
    reply = _sample(tokenizer, context, question, [fact.answer], f" {fact.end}")
    return replace(reply, max_new_tokens=CHAT_TOKENS) if chat else reply


def _list_task(rng, tokenizer, tokens, draw, words, head: str, question: str) -> Sample:
    seed = int(rng.integers(2**63))

    def drawn(items: int) -> tuple[str, list[str]]:
        listed, answers = draw(np.random.default_rng(seed), items, len(words))
        return head + "".join(f" {words[i]}" for i in listed), [words[i] for i in answers]

    def count(items: int) -> int:
        return count_tokens(tokenizer, drawn(items)[0] + question)

    context, answers = drawn(largest_fit(count, tokens, guess=tokens // 4, least=COMMON * RATIO + OTHERS))
    return _sample(tokenizer, context, question, answers, reply_list(answers))


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("single", "one key and its code", partial(_needles, count=1)),
        Task("multikey", "one code among sixteen keys", partial(_needles, count=16)),
        Task("multivalue", "all four numbered codes of one key, with two other such keys", _multivalue),
        Task("multiquery", "the codes of four keys out of sixteen", _multiquery),
        Task("variables", "the chain of names that leads to a value, with two other chains", _variables),
        Task(
            "common_words", "three words that a list has ten times as often as thirty others", _common_words
        ),
        Task("multi_turn", "a second code, asked for only after the first was answered", _multi_turn),
        Task("frequent_words", "the three most frequent coded words of a Zipf-like list", _frequent_words),
        Task("fact", "the end of a natural sentence among five, hidden in the shipped texts", _fact),
        Task("fact_chat", "such a sentence, asked for in the model's chat form", partial(_fact, chat=True)),
    )
}

# Their haystack is the shipped texts. The embedded model was trained on the wording of the others.
FACT_TASKS = ("fact", "fact_chat")
# What is run by default.
SINGLE_TURN = tuple(name for name in TASKS if name not in ("multi_turn", *FACT_TASKS))
