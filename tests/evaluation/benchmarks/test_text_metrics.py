"""Metrics against hand-made cases, and distances against recursive definitions."""

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyhole.evaluation.benchmarks import text_metrics
from keyhole.evaluation.benchmarks.text_metrics import (
    character_f1,
    edit_distance,
    f1,
    normalised,
    normalised_chinese,
    rouge_l,
    rouge_l_sum,
    segment_f1,
    word_f1,
)

SHORT = st.text("ab.", max_size=7)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("The cat, an apple -- a  dog!", "cat apple dog"),
        ("Theatre another", "theatre another"),  # articles are whole words
        ("It's the U.S.A.", "its usa"),
        ("CAFÉ «the» İ", "café « » i̇"),  # only ASCII's marks are dropped
        ("a an the", ""),
    ],
)
def test_normalised(text, expected):
    assert normalised(text) == expected


def test_normalised_chinese():
    assert normalised_chinese("  你好，World！ 「A」 b.") == "你好worldab"
    assert normalised_chinese("《书》") == "《书"  # the opening mark stays, as in the released scorers


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("", "Paris", 0.0),
        ("", "", 0.0),
        ("the", "a", 0.0),  # nothing is left of either
        ("The Paris.", "paris", 1.0),
        ("Paris Paris London", "Paris", 2 / 4),  # a repeated word counts once per occurrence in both
        ("Paris Paris", "Paris Paris Rome", 4 / 5),
        ("in Paris", "Paris, France", 1 / 2),
    ],
)
def test_word_f1(answer, reference, expected):
    assert word_f1(answer, reference) == pytest.approx(expected)


def test_f1_is_the_harmonic_mean_of_precision_and_recall():
    answer, reference = ["a", "a", "b", "c"], ["a", "b", "b", "d", "e"]
    precision, recall = 2 / 4, 2 / 5
    assert f1(answer, reference) == pytest.approx(2 * precision * recall / (precision + recall))


def test_character_f1():
    assert character_f1("北京。", "北京市") == pytest.approx(4 / 5)
    assert character_f1("", "北京") == 0


@cache
def _distance(first: str, second: str) -> int:
    if not first or not second:
        return len(first) + len(second)
    same = _distance(first[1:], second[1:]) + (first[0] != second[0])
    return min(same, _distance(first[1:], second) + 1, _distance(first, second[1:]) + 1)


@given(SHORT, SHORT)
def test_edit_distance(first, second):
    assert edit_distance(first, second) == _distance(first, second)


def test_rouge_l_of_text_without_words_needs_no_package():
    assert rouge_l("", "a summary") == rouge_l("...", "a summary") == rouge_l("a", " . ") == 0


def test_rouge_l():
    pytest.importorskip("rouge", reason="the package rouge is not installed")
    assert rouge_l("the cat sat", "the cat sat") == pytest.approx(1, abs=1e-6)
    assert rouge_l("the cat", "the cat sat down") == pytest.approx(2 * 1 * 0.5 / 1.5, abs=1e-6)
    assert rouge_l("dog", "cat") == 0


def test_rouge_l_sum():
    pytest.importorskip("rouge_score", reason="the package rouge-score is not installed")
    assert rouge_l_sum("the cat sat", "the cat sat") == pytest.approx(1)
    # A line is a sentence: the union over lines finds both halves, whichever comes first.
    assert rouge_l_sum("b b2\na a2", "a a2\nb b2") == pytest.approx(1)
    assert rouge_l_sum("", "cat") == 0


def test_segment_f1():
    pytest.importorskip("jieba", reason="the package jieba is not installed")
    assert segment_f1("北京。", "北京") == 1
    assert segment_f1("", "北京") == 0


@pytest.mark.parametrize("metric", [rouge_l, rouge_l_sum, segment_f1])
def test_a_missing_package_is_named(metric, monkeypatch):
    monkeypatch.setattr(text_metrics, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"not installed; pip install 'keyhole\[eval\]'"):
        metric("some words", "some words")
