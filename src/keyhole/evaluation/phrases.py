"""What tasks say, and the words and numbers they draw; the embedded model is trained on the same wording."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from keyhole.evaluation.words import ADJECTIVES, CODED_WORDS, NOUNS

NUMBERS = range(100, 1000)
TEXT_HEAD = "Text:"
LIST_HEAD = "List of words:"
CODED_HEAD = "List of coded words:"
COMMON_QUESTION = "\nThe three most common words of the list are 1"
FREQUENT_QUESTION = "\nThe three most frequent coded words of the list are 1"
COMMON, OTHERS, RATIO = 3, 30, 10  # common and other words, and how much more often the first appear
FREQUENT, ZETA = 3, 2.0  # words asked for, and the exponent of the frequencies


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
        raise ValueError(f"a list of {items} words is too short, the least is {least}")
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
