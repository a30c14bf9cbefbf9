"""Prompts of an exact token length, for any Hugging Face tokenizer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from transformers import PreTrainedTokenizerBase

from keyhole.evaluation.haystack import Haystack

_ROUNDS = 24


def count_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """Tokens of `text` as a prompt, with the special tokens the tokenizer adds."""
    return len(tokenizer(text, verbose=False).input_ids)


def largest_fit(count: Callable[[int], int], tokens: int, guess: int, least: int = 0) -> int:
    """The largest n near `guess`, not below `least`, with count(n) <= tokens; count grows with n.

    Raises ValueError when even count(least) is too long.
    """
    fits, too_long, n = -1, None, max(guess, least)
    for _ in range(_ROUNDS):
        spare = tokens - count(n)
        if spare >= 0:
            fits = max(fits, n)
            step = max(1, spare // 2)
        else:
            too_long = n if too_long is None else min(too_long, n)
            step = -max(1, -spare // 2)
        if spare == 0 or (too_long is not None and too_long - fits == 1):
            break
        n = max(n + step, least)
        if too_long is not None and not fits < n < too_long:
            n = (max(fits, least - 1) + too_long) // 2
        if n < least:
            break
    if fits < 0:
        raise ValueError(f"needs at least {count(least)} tokens, got {tokens}")
    return fits


@dataclass(frozen=True)
class Words:
    """A haystack cut into words. All arrays are [W], one entry for each word in reading order."""

    words: tuple[str, ...]
    tokens: np.ndarray  # tokens of the word with the space before it
    starts: np.ndarray  # whether the word begins a sentence


_WORDS: WeakKeyDictionary[PreTrainedTokenizerBase, dict[Haystack, Words]] = WeakKeyDictionary()


def words_of(haystack: Haystack, tokenizer: PreTrainedTokenizerBase) -> Words:
    """The haystack's words with their token counts, computed once for each tokenizer."""
    known = _WORDS.setdefault(tokenizer, {})
    if haystack not in known:
        known[haystack] = _cut(haystack, tokenizer)
    return known[haystack]


def _cut(haystack: Haystack, tokenizer: PreTrainedTokenizerBase) -> Words:
    split = [sentence.split() for sentence in haystack.sentences]
    words = [word for sentence in split for word in sentence]
    distinct = sorted(set(words))
    ids = tokenizer([f" {word}" for word in distinct], add_special_tokens=False, verbose=False).input_ids
    length = {word: len(tokens) for word, tokens in zip(distinct, ids, strict=True)}
    starts = np.zeros(len(words), dtype=bool)
    starts[np.cumsum([0, *(len(sentence) for sentence in split[:-1])])] = True
    return Words(tuple(words), np.array([length[word] for word in words]), starts)


def bury(
    rng: np.random.Generator,
    needles: Sequence[str],
    haystack: Haystack,
    tokenizer: PreTrainedTokenizerBase,
    tokens: int,
    *,
    head: str,
    question: str,
    depths: Sequence[float] | None = None,
) -> str:
    """`head` and a run of the haystack with `needles` between its sentences.

    The context and `question` together are at most `tokens` tokens long, and as close to it as whole words
    allow. Depths are shares of the run's sentences, by default uniform and independent; needles that share a
    depth keep their order.
    """
    hay = words_of(haystack, tokenizer)
    first = int(rng.choice(np.flatnonzero(hay.starts)))
    where = rng.random(len(needles)) if depths is None else np.asarray(depths)

    def context(words: int) -> str:
        return head + _spread(hay, first, words, needles, where)

    def count(words: int) -> int:
        return count_tokens(tokenizer, context(words) + question)

    reach = np.arange(first, first + max(tokens, 1)) % len(hay.words)
    guess = int(np.searchsorted(np.cumsum(hay.tokens[reach]), tokens - count(0), side="right"))
    return context(largest_fit(count, tokens, guess))


def _spread(hay: Words, first: int, count: int, needles: Sequence[str], depths: np.ndarray) -> str:
    run = np.arange(first, first + count) % len(hay.words)
    borders = np.append(np.flatnonzero(hay.starts[run]), count)
    cuts = borders[(depths * len(borders)).astype(int)]
    parts, last = [], 0
    order: list[int] = np.argsort(cuts, kind="stable").tolist()
    for needle in order:
        parts += [hay.words[i] for i in run[last : cuts[needle]]]
        parts.append(needles[needle].strip())
        last = cuts[needle]
    parts += [hay.words[i] for i in run[last:]]
    return "".join(f" {part}" for part in parts)
