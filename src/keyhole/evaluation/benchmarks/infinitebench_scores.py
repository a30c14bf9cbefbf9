"""InfiniteBench's metrics (Zhang et al. 2024), as its scorer was released; SCBench shares several."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from keyhole.evaluation.benchmarks.text_metrics import character_f1, rouge_l_sum, word_f1

_MARKS = "\n:\"'.,?!{}"
_CHOICE_MARKS = "\n\"'.,?!{}"
_DEBUG_MARKS = ("\n", "`", "'", '"', "-", "*", "Option", "option")
_CHOICE_LEADS = ("answer is:", "answer:", "answer is", "option is")
_DEBUG_LEADS = ("answer is:", "is:", "answer:", "correct option is:")
_NUMBER = re.compile(r"\d+\.\d+|\d+")


def texts(reference: Any) -> list[str]:
    return [str(each) for each in reference] if isinstance(reference, list) else [str(reference)]


def word_in(reference: Any, answer: str) -> float:
    """Whether the reference is one of the answer's words."""
    return float(texts(reference)[0] in _words(answer, _MARKS))


def speaker(reference: Any, answer: str) -> float:
    """`word_in` in capitals, in which names of a script are written."""
    return float(texts(reference)[0] in [word.upper() for word in _words(answer, _MARKS)])


def first_digits(reference: Any, answer: str) -> float:
    """Whether the answer's first run of digits is the reference."""
    found = re.search(r"[0-9]+", answer)
    return float(found is not None and found.group() == texts(reference)[0])


def last_integer(reference: Any, answer: str) -> float:
    """Whether the answer's last word is the reference as a whole number."""
    words = _words(answer, "\n.`'\":")
    try:
        return float(bool(words) and int(words[-1]) == _first(reference))
    except ValueError:
        return 0.0


def first_number(reference: Any, answer: str) -> float:
    """Whether the answer's first number is the reference; its whole part where the reference is whole."""
    found, wanted = _NUMBER.search(answer), _first(reference)
    if found is None:
        return 0.0
    number = float(found.group())
    return float((int(number) if isinstance(wanted, int) else number) == wanted)


def leading_values(reference: Any, answer: str) -> float:
    """The share of the reference's numbers that the answer lists from the first on, up to the first error."""
    wanted = reference[0] if isinstance(reference[0], list) else reference
    right = 0
    for value, digits in zip(wanted, re.findall(r"[0-9]+", answer), strict=False):
        if int(digits) != value:
            break
        right += 1
    return right / len(wanted)


def choice(reference: Sequence[str], answer: str) -> float:
    """Whether an answer names the option or its letter: first, behind a leading phrase, or as a word."""
    text = answer.strip()
    if not text:
        return 0.0
    if text[0] in "ABCD":
        return float(text[0] in reference)
    if text in reference:
        return 1.0
    words = _words(text, _CHOICE_MARKS)
    behind = _behind(" ".join(words), _CHOICE_LEADS)
    if behind is not None:
        return float(any(behind.startswith(each) for each in reference))
    return next((float(word in reference) for word in words if word in "ABCD"), 0.0)


def debugged(reference: Sequence[str], answer: str) -> float:
    """Whether an answer begins with the option's letter, or names it behind a leading phrase."""
    name, letter = reference
    text = answer.strip()
    if text[:2] in (f"{letter}.", f"{letter}:"):
        return 1.0
    for mark in _DEBUG_MARKS:
        text = text.replace(mark, " ")
    behind = _behind(re.sub(" +", " ", text), _DEBUG_LEADS)
    return float(behind is not None and behind.startswith((letter, name)))


def _behind(text: str, leads: Sequence[str]) -> str | None:
    """What follows the first of the phrases that occurs, and one more character; None if none occurs."""
    lead = next((each for each in leads if each in text), None)
    return None if lead is None else text[text.index(lead) + len(lead) + 1 :] or "\0"


def _words(answer: str, marks: str) -> list[str]:
    return answer.translate(str.maketrans(dict.fromkeys(marks, " "))).split()


def _first(reference: Any) -> Any:
    return reference[0] if isinstance(reference, list) else reference


def best_of(metric: Callable[[str, str], float]) -> Callable[[Any, str], float]:
    return lambda reference, answer: max(metric(answer, each) for each in texts(reference))


SCORES: dict[str, Callable[[Any, str], float]] = {
    "passkey": first_digits,
    "number_string": first_digits,
    "kv_retrieval": word_in,
    "longbook_sum_eng": best_of(rouge_l_sum),
    "longbook_choice_eng": choice,
    "longbook_qa_eng": best_of(word_f1),
    "longbook_qa_chn": best_of(character_f1),
    "longdialogue_qa_eng": speaker,
    "math_find": first_number,
    "math_calc": leading_values,
    "code_run": last_integer,
    "code_debug": debugged,
}
