"""The tasks' wording as token templates: tokenised once, filled with word and number tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from transformers import PreTrainedTokenizerBase

from keyhole.evaluation import phrases
from keyhole.evaluation.words import ADJECTIVES, NOUNS
from keyhole.training.tokenizer import END, token_id


@dataclass(frozen=True)
class Form:
    """A tokenised wording. `slots[i]` is the argument that replaces token i, or -1 for fixed wording."""

    ids: tuple[int, ...]
    slots: tuple[int, ...]

    def fill(self, arguments: Sequence[int]) -> list[int]:
        pairs = zip(self.ids, self.slots, strict=True)
        return [arguments[slot] if slot >= 0 else token for token, slot in pairs]


@dataclass(frozen=True)
class Reply:
    """A question with its answer.

    `asked[i]` is 0 in the question, 2 for what is to be found, 1 for wording and for what was named before.
    """

    form: Form
    asked: tuple[int, ...]


class Phrasebook:
    """Forms of one tokenizer. Arguments are token ids: two for a key (adjective, noun), one for others."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.adjectives = self.words(ADJECTIVES)
        self.nouns = self.words(NOUNS)
        self.numbers = self.words(phrases.NUMBERS)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids

    def words(self, words: Sequence) -> np.ndarray:
        """Ids of words that are one token each, with the space before them."""
        ids = [self.encode(f" {word}") for word in words]
        split = [word for word, tokens in zip(words, ids, strict=True) if len(tokens) != 1]
        if split:
            raise ValueError(f"the tokenizer splits task words: {split[:5]}")
        return np.array([tokens[0] for tokens in ids])

    def keys(self, rng: np.random.Generator, count: int) -> list[tuple[int, ...]]:
        pairs = phrases.draw_pairs(rng, len(self.adjectives), len(self.nouns), count)
        return list(zip(self.adjectives[pairs[:, 0]].tolist(), self.nouns[pairs[:, 1]].tolist(), strict=True))

    def names(self, rng: np.random.Generator, count: int) -> list[tuple[int, ...]]:
        return [(name,) for name in rng.choice(self.nouns, count, replace=False).tolist()]

    def values(self, rng: np.random.Generator, count: int) -> list[tuple[int, ...]]:
        return [(number,) for number in rng.choice(self.numbers, count, replace=False).tolist()]

    def form(self, text: str, arguments: Sequence[str]) -> Form:
        """Tokenise `text`, written with stand-ins; `arguments` lists them in the order of use."""
        place = {token: n for n, token in enumerate(self.encode("".join(f" {a}" for a in arguments)))}
        ids = self.encode(text)
        return Form(tuple(ids), tuple(place.get(token, -1) for token in ids))

    def reply(self, question: str, answer: str, arguments: Sequence[str]) -> Reply:
        """The form of question + answer + end of text."""
        form = self.form(question + answer, arguments)
        begin = len(self.encode(question))
        fresh = [slot >= 0 and slot not in form.slots[:i] for i, slot in enumerate(form.slots)]
        asked = [0 if i < begin else 1 + new for i, new in enumerate(fresh)]
        end = token_id(self.tokenizer, END)
        return Reply(Form((*form.ids, end), (*form.slots, -1)), (*asked, 1))


def stand_in_keys(count: int) -> list[str]:
    return [f"{ADJECTIVES[i]} {NOUNS[i]}" for i in range(count)]


def stand_in_names(count: int) -> list[str]:
    return list(NOUNS[:count])


def stand_in_values(count: int) -> list[str]:
    return [str(phrases.NUMBERS[i]) for i in range(count)]


class Wording:
    """The forms of all tasks, compiled from the wording in `keyhole.evaluation.phrases`."""

    def __init__(self, book: Phrasebook) -> None:
        self.book = book
        (key,), (value,) = stand_in_keys(1), stand_in_values(1)
        self.needle = book.form(phrases.needle(key, value), [key, value])
        self.ask_one = book.reply(phrases.ask_one(key), f" {value}.", [key, value])
        assign, hop = phrases.chain(value, stand_in_names(2))
        self.assign = book.form(assign, [*stand_in_names(1), value])
        self.hop = book.form(hop, stand_in_names(2))
        self.numbered = cache(self._numbered)
        self.ask_all = cache(self._ask_all)
        self.ask_several = cache(self._ask_several)
        self.ask_chain = cache(self._ask_chain)

    def _numbered(self, count: int) -> list[Form]:
        """Arguments of each form: the key, then all values."""
        (key,), values = stand_in_keys(1), stand_in_values(count)
        return [self.book.form(text, [key, *values]) for text in phrases.numbered(key, values)]

    def _ask_all(self, count: int) -> Reply:
        """Arguments: the key, then its values."""
        (key,), values = stand_in_keys(1), stand_in_values(count)
        return self.book.reply(phrases.ask_all(key), phrases.reply_all(key, values), [key, *values])

    def _ask_several(self, count: int) -> Reply:
        """Arguments: the keys, then their values."""
        keys, values = stand_in_keys(count), stand_in_values(count)
        return self.book.reply(
            phrases.ask_several(keys), phrases.reply_several(keys, values), [*keys, *values]
        )

    def _ask_chain(self, count: int) -> Reply:
        """Arguments: the names, then the value."""
        names, (value,) = stand_in_names(count), stand_in_values(1)
        return self.book.reply(
            phrases.ask_chain(names[-1]), phrases.reply_chain(value, names), [*names, value]
        )
