"""Long-context retrieval tasks in the manner of RULER (Hsieh et al. 2024).

Every task is text, so it runs with any Hugging Face tokenizer and model. A question ends where the wording
of the context goes on with the answer, so that a model without instruction tuning can be asked too.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from transformers import PreTrainedTokenizerBase

from keyhole.evaluation.fitting import bury, count_tokens, largest_fit
from keyhole.evaluation.haystack import Haystack
from keyhole.evaluation.words import ADJECTIVES, CODED_WORDS, NOUNS

NUMBERS = range(100, 1000)
TEXT_HEAD = "Text:"
LIST_HEAD = "List of words:"
CODED_HEAD = "List of coded words:"
COMMON_QUESTION = "\nThe three most common words of the list are 1"
FREQUENT_QUESTION = "\nThe three most frequent coded words of the list are 1"
COMMON, OTHERS, RATIO = 3, 30, 10  # common and other words, and how much more often the first appear
FREQUENT, ZETA = 3, 2.0  # words asked for, and the exponent of the frequencies


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


def needle(key: str, value: str) -> str:
    return f" The secret code of {key} is {value}."


def ask_one(key: str) -> str:
    return f"\nThe secret code of {key} is"


def numbered(key: str, values: Sequence[str]) -> list[str]:
    """The statements that give one key several values."""
    return [f" The secret code {i} of {key} is {value}." for i, value in enumerate(values, 1)]


def ask_all(key: str) -> str:
    return f"\nAll secret codes of {key}: code 1 of {key} is"


def reply_all(key: str, values: Sequence[str]) -> str:
    """How a question by `ask_all` is answered."""
    rest = [f", code {i} of {key} is {value}" for i, value in enumerate(values[1:], 2)]
    return f" {values[0]}{''.join(rest)}."


def ask_several(keys: Sequence[str]) -> str:
    listed = ", ".join(f"{i} {key}" for i, key in enumerate(keys, 1))
    return f"\nThe secret codes of {listed}: 1 {keys[0]} is"


def reply_several(keys: Sequence[str], values: Sequence[str]) -> str:
    """How a question by `ask_several` is answered."""
    numbered = zip(range(2, len(keys) + 1), keys[1:], values[1:], strict=True)
    return f" {values[0]}{''.join(f', {i} {k} is {v}' for i, k, v in numbered)}."


def chain(value: str, names: Sequence[str]) -> list[str]:
    """The assignments that hand `value` on from name to name."""
    return [f" The value of {name} is {source}." for source, name in pairwise([value, *names])]


def ask_chain(name: str) -> str:
    return f"\nFollow {name}. The value of {name} is"


def reply_chain(value: str, names: Sequence[str]) -> str:
    """How a question by `ask_chain` for the last name is answered: back to the value."""
    steps = "".join(reversed(chain(value, names)))
    return steps.removeprefix(f" The value of {names[-1]} is")


def reply_list(words: Sequence[str]) -> str:
    """How the questions about lists are answered."""
    return f" {words[0]}{''.join(f', {i} {word}' for i, word in enumerate(words[1:], 2))}."


def draw_pairs(rng: np.random.Generator, first: int, second: int, count: int) -> np.ndarray:
    """`count` different pairs out of first x second. Layout: (count, 2)."""
    flat = rng.choice(first * second, size=count, replace=False)
    return np.stack(np.divmod(flat, second), axis=1)


def draw_keys(rng: np.random.Generator, count: int) -> list[str]:
    """Different two-word keys; single words may recur, so both words matter."""
    return [
        f"{ADJECTIVES[a]} {NOUNS[n]}" for a, n in draw_pairs(rng, len(ADJECTIVES), len(NOUNS), count).tolist()
    ]


def draw_names(rng: np.random.Generator, count: int) -> list[str]:
    """Different names of variables."""
    return [NOUNS[i] for i in rng.choice(len(NOUNS), count, replace=False)]


def draw_values(rng: np.random.Generator, count: int, taken: frozenset[int] = frozenset()) -> list[str]:
    """Different three-digit numbers, none of them in `taken` where enough others are left."""
    free = [number for number in NUMBERS if number not in taken]
    return [
        str(number) for number in rng.choice(free if len(free) >= count else NUMBERS, count, replace=False)
    ]


def draw_common(
    rng: np.random.Generator, items: int, words: int = len(NOUNS)
) -> tuple[np.ndarray, np.ndarray]:
    """A shuffled list of word numbers, and the COMMON ones.

    About RATIO of every common word stand against one of each of the OTHERS, at any length.
    """
    each = items * RATIO // (COMMON * RATIO + OTHERS)
    rest = items - COMMON * each
    if each < RATIO:
        least = COMMON * RATIO + OTHERS
        raise ValueError(f"a list of {items} words is too short; the minimum is {least}")
    chosen = rng.permutation(words)
    others = np.resize(chosen[COMMON : COMMON + OTHERS], rest)
    listed = rng.permutation(np.concatenate([np.repeat(chosen[:COMMON], each), others]))
    return listed, chosen[:COMMON]


def draw_frequent(
    rng: np.random.Generator, items: int, words: int = len(CODED_WORDS)
) -> tuple[np.ndarray, np.ndarray]:
    """A shuffled list of word numbers with frequencies 1 / rank**ZETA, and the FREQUENT first ranks."""
    share = np.arange(1, words + 1) ** -ZETA
    counts = np.floor(items * share / share.sum()).astype(int)
    counts[0] += items - counts.sum()
    if counts[FREQUENT - 1] <= counts[FREQUENT]:
        raise ValueError(f"a list of {items} words is too short to rank its words")
    chosen = rng.permutation(words)
    return rng.permutation(np.repeat(chosen, counts)), chosen[:FREQUENT]


def _sample(tokenizer, context: str, question: str, answers: Sequence[str], reply: str) -> Sample:
    length = count_tokens(tokenizer, reply)
    return Sample(question, tuple(answers), length + length // 4 + 4, context=context)


def _single(rng, haystack, tokenizer, tokens) -> Sample:
    return _needles(rng, haystack, tokenizer, tokens, count=1)


def _multikey(rng, haystack, tokenizer, tokens) -> Sample:
    return _needles(rng, haystack, tokenizer, tokens, count=16)


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
        Task("single", "one key and its code", _single),
        Task("multikey", "one code among sixteen keys", _multikey),
        Task("multivalue", "all four numbered codes of one key, with two other such keys", _multivalue),
        Task("multiquery", "the codes of four keys out of sixteen", _multiquery),
        Task("variables", "the chain of names that leads to a value, with two other chains", _variables),
        Task(
            "common_words",
            "the three words a list repeats ten times as often as its thirty others",
            _common_words,
        ),
        Task("multi_turn", "a second code, asked for only after the first was answered", _multi_turn),
        Task("frequent_words", "the three most frequent coded words of a Zipf-like list", _frequent_words),
    )
}

# The others ask a single question.
SINGLE_TURN = tuple(name for name in TASKS if name != "multi_turn")
