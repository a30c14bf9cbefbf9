"""LongBench's metrics (Bai et al. 2023), as its scorer was released."""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import SequenceMatcher
from typing import NamedTuple

from keyhole.evaluation.benchmarks.text_metrics import (
    rouge_l,
    segment_f1,
    segments,
    word_f1,
)


class Judged(NamedTuple):
    """References, of which the one nearest to an answer counts, and the labels of a class task."""

    answers: list[str]
    classes: list[str]


def best(metric: Callable[[str, str], float], judged: Judged, answer: str) -> float:
    return max(metric(answer, reference) for reference in judged.answers)


def label(judged: Judged, answer: str) -> float:
    """One over the labels that the answer names, if the reference is among them.

    Labels within the reference do not count. As released: the entry after one that is struck off the list is
    not looked at, so it counts.
    """
    scores = []
    for reference in judged.answers:
        named = [each for each in judged.classes if each in answer]
        index = 0
        while index < len(named):
            if named[index] in reference and named[index] != reference:
                del named[index]
            index += 1
        scores.append(1 / len(named) if reference in named else 0.0)
    return max(scores)


def share_of_numbers(answer: str, wanted: str) -> float:
    """The share of the numbers in an answer that are the wanted one."""
    numbers = re.findall(r"\d+", answer)
    return numbers.count(wanted) / len(numbers) if numbers else 0.0


def passage(answer: str, reference: str) -> float:
    """`share_of_numbers` for the number in the reference, which names a paragraph in English or Chinese."""
    found = re.search(r"(?:Paragraph |段落)(\d+)", reference)
    if found is None:
        raise ValueError(f"the reference {reference!r:.60} names no paragraph")
    return share_of_numbers(answer, found.group(1))


def code(answer: str, reference: str) -> float:
    """Similarity of the first line that is code, not a comment, to the reference, in whole percent.

    By difflib, as fuzzywuzzy computes it with the packages that LongBench asks for; with python-Levenshtein
    beside them it would be another measure.
    """
    lines = answer.lstrip("\n").split("\n")
    line = next((each for each in lines if not any(mark in each for mark in ("`", "#", "//"))), "")
    return round(100 * SequenceMatcher(None, line, reference).ratio()) / 100


def chinese_rouge(answer: str, reference: str) -> float:
    return rouge_l(" ".join(segments(answer)), " ".join(segments(reference)))


def first_line(answer: str) -> str:
    return answer.lstrip("\n").split("\n")[0]


def _pairs(metric: Callable[[str, str], float]) -> Callable[[Judged, str], float]:
    return lambda judged, answer: best(metric, judged, answer)


def _few_shot(score: Callable[[Judged, str], float]) -> Callable[[Judged, str], float]:
    """Of the first line only: models go on with further examples."""
    return lambda judged, answer: score(judged, first_line(answer))


SCORES: dict[str, Callable[[Judged, str], float]] = {
    **dict.fromkeys(
        ("narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "musique"), _pairs(word_f1)
    ),
    **dict.fromkeys(("multifieldqa_zh",), _pairs(segment_f1)),
    **dict.fromkeys(("gov_report", "qmsum", "multi_news"), _pairs(rouge_l)),
    **dict.fromkeys(("dureader", "vcsum"), _pairs(chinese_rouge)),
    **dict.fromkeys(("trec", "lsht"), _few_shot(label)),
    **dict.fromkeys(("triviaqa",), _few_shot(_pairs(word_f1))),
    **dict.fromkeys(("samsum",), _few_shot(_pairs(rouge_l))),
    **dict.fromkeys(("passage_count",), _pairs(share_of_numbers)),
    **dict.fromkeys(("passage_retrieval_en", "passage_retrieval_zh"), _pairs(passage)),
    **dict.fromkeys(("lcc", "repobench-p"), _pairs(code)),
}
PACKAGES = {
    **dict.fromkeys(("gov_report", "qmsum", "multi_news", "samsum"), ("rouge",)),
    **dict.fromkeys(("dureader", "vcsum"), ("rouge", "jieba")),
    "multifieldqa_zh": ("jieba",),
}
