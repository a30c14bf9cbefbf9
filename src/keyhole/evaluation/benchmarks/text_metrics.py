"""Metrics on text that several benchmarks share, from their definitions. All are from 0 to 1."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import chain
from types import ModuleType

# What the scorers of LongBench and InfiniteBench drop from Chinese text besides ASCII's marks: full-width
# forms, brackets (not the opening \u300a, as released), dashes and quotation marks.
_CHINESE_MARKS = "".join(
    map(
        chr,
        chain(
            (0xFF01, 0xFF1F, 0xFF61, 0x3002, 0x3003, 0x2014, 0x2013, 0x2026, 0x2027, 0xFE4F, 0x3030),
            (0x2018, 0x2019, 0x201B, 0x201C, 0x201D, 0x201E, 0x201F, 0x3001, 0x303E, 0x303F, 0xFF5B),
            range(0xFF02, 0xFF0E),
            (0xFF0F, 0xFF1A, 0xFF1B, 0xFF1C, 0xFF1D, 0xFF1E, 0xFF20),
            range(0xFF3B, 0xFF41),
            (0xFF5C, 0xFF5D, 0xFF5E, 0xFF5F, 0xFF60, 0xFF62, 0xFF63, 0xFF64),
            range(0x300B, 0x3012),
            range(0x3014, 0x3020),
        ),
    )
)
_DROPPED = str.maketrans("", "", string.punctuation)
_DROPPED_CHINESE = str.maketrans("", "", string.punctuation + _CHINESE_MARKS)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_EXTRA = "pip install 'keyhole[eval]'"


def normalised(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, words separated by one space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_DROPPED)).split())


def normalised_chinese(text: str) -> str:
    """Lower case, without punctuation and white space."""
    return "".join(text.lower().translate(_DROPPED_CHINESE).split())


def f1(answer: Sequence[str], reference: Sequence[str]) -> float:
    """The harmonic mean of precision and recall of tokens, each as often as it occurs."""
    common = (Counter(answer) & Counter(reference)).total()
    return 2 * common / (len(answer) + len(reference)) if common else 0.0


def word_f1(answer: str, reference: str) -> float:
    """F1 of normalised words, as SQuAD's scorer has it."""
    return f1(normalised(answer).split(), normalised(reference).split())


def character_f1(answer: str, reference: str) -> float:
    """F1 of the characters of normalised Chinese text."""
    return f1(normalised_chinese(answer), normalised_chinese(reference))


def segment_f1(answer: str, reference: str) -> float:
    """F1 of the words that jieba finds in Chinese text, normalised."""
    words = ([normalised_chinese(word) for word in segments(text)] for text in (answer, reference))
    return f1(*([word for word in each if word] for each in words))


def segments(text: str) -> list[str]:
    """The words that jieba cuts Chinese text into."""
    return list(needed("jieba").lcut(text, cut_all=False))


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L as the package `rouge` computes it, which LongBench scores by; 0 for text without words."""
    if not answer.replace(".", "").strip() or not reference.replace(".", "").strip():
        return 0.0
    return float(needed("rouge").Rouge().get_scores([answer], [reference], avg=True)["rouge-l"]["f"])


def rouge_l_sum(answer: str, reference: str) -> float:
    """ROUGE-Lsum as the package `rouge-score` computes it, without stemming; a line is a sentence."""
    needed("rouge_score")
    from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-not-found]

    return float(RougeScorer(["rougeLsum"]).score(reference, answer)["rougeLsum"].fmeasure)


def edit_distance(first: str, second: str) -> int:
    """Insertions, deletions and substitutions that lead from one text to the other."""
    row = list(range(len(second) + 1))
    for count, character in enumerate(first, 1):
        diagonal, row[0] = row[0], count
        for index, other in enumerate(second, 1):
            diagonal, row[index] = (
                row[index],
                min(row[index] + 1, row[index - 1] + 1, diagonal + (character != other)),
            )
    return row[-1]


def needed(package: str) -> ModuleType:
    """A package of the extra `eval`.

    Raises:
        ValueError: it is not installed.
    """
    if find_spec(package) is None:
        raise ValueError(f"this task is scored by the package {package!r}, which is not installed; {_EXTRA}")
    return __import__(package)
