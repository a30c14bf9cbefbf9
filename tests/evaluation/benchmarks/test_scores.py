"""Each benchmark's metrics on hand-made cases."""

import pytest

from keyhole.evaluation.benchmarks import infinitebench_scores as infinite
from keyhole.evaluation.benchmarks.babilong import LABELS, named_alone
from keyhole.evaluation.benchmarks.longbench2 import chosen
from keyhole.evaluation.benchmarks.longbench_scores import SCORES, Judged
from keyhole.evaluation.benchmarks.needlebench import found_or_near
from keyhole.evaluation.benchmarks.ruler import share_found


@pytest.mark.parametrize(
    ("references", "answer", "expected"),
    [
        (["123", "456"], "", 0),
        (["123", "456"], " It is 123\x00,\n 999", 0.5),
        (["Abc"], "xABCx", 1),  # within a word, in any case
        (["É"], "é", 1),
    ],
)
def test_share_found(references, answer, expected):
    assert share_found(references, answer) == expected


@pytest.mark.parametrize(
    ("task", "answers", "answer", "expected"),
    [
        ("hotpotqa", ["London", "the Paris"], "Paris", 1.0),  # the best reference counts
        ("triviaqa", ["Paris"], "\nParis\nQuestion: what else", 1.0),  # the first line only
        ("hotpotqa", ["Paris"], "Paris\nwhat else", 2 / 4),
        ("passage_count", ["7"], "7 or 8", 0.5),
        ("passage_count", ["7"], "seven", 0.0),
        ("passage_count", ["7"], "77", 0.0),
        ("passage_retrieval_en", ["Paragraph 12"], "Paragraph 12", 1.0),
        ("passage_retrieval_zh", ["段落3"], "段落3，段落4", 0.5),
        ("lcc", ["x = 1"], "# a comment\n`x`\nx = 1\ny = 2", 1.0),
        ("lcc", ["x = 1"], "x = 2", 0.8),
        ("lcc", ["x = 1"], "", 0.0),
        ("lcc", ["abc"], "abcdefgh", 0.55),  # 6/11 in whole percent
    ],
)
def test_longbench(task, answers, answer, expected):
    assert SCORES[task](Judged(answers, []), answer) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("classes", "answer", "expected"),
    [
        (["sport", "water sport"], "water sport", 1.0),  # a label within the reference does not count
        (["sport", "water sport"], "sport", 0.0),
        (["water sport", "politics"], "water sport and politics", 0.5),
        (["water sport"], "", 0.0),
        # As released: what follows a label that was struck off is passed over.
        (["sport", "water", "water sport"], "water sport", 0.5),
        (["water sport"], "\n\nwater sport\npolitics", 1.0),
    ],
)
def test_longbench_labels(classes, answer, expected):
    assert SCORES["trec"](Judged(["water sport"], classes), answer) == expected


def test_a_reference_without_a_paragraph_is_refused():
    with pytest.raises(ValueError, match="names no paragraph"):
        SCORES["passage_retrieval_en"](Judged(["twelve"], []), "12")


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("The correct answer is (B).", "B"),
        ("**The correct answer is C**", "C"),
        ("The correct answer is (E)", None),
        ("I think B", None),
        ("", None),
        ("The correct answer is D, or: The correct answer is (A)", "A"),  # the form with brackets first
    ],
)
def test_longbench2_choice(answer, letter):
    assert chosen(answer) == letter


CASES = [
    ("passkey", "71432", "The key is 71432.", 1),
    ("passkey", ["71432"], "7 71432", 0),
    ("passkey", "71432", "", 0),
    ("kv_retrieval", "ab-1", '{"key": "ab-1"}', 1),
    ("kv_retrieval", "ab-1", "ab-12", 0),
    ("longdialogue_qa_eng", ["JACK"], "I say jack.", 1),
    ("longdialogue_qa_eng", ["JACK"], "jackson", 0),
    ("math_find", 7, "It is 7.9", 1),  # the whole part where the reference is whole
    ("math_find", 7.5, "7.5", 1),
    ("math_find", [8], "none", 0),
    ("math_calc", [1, 4, 8], "[1, 4, 9, 8]", 2 / 3),
    ("math_calc", [[1, 4, 8]], "1, 4, 8", 1),
    ("math_calc", [1, 4, 8], "4, 8", 0),
    ("code_run", 5, "The value is 5.", 1),
    ("code_run", [-5], "it returns -5", 1),
    ("code_run", 5, "five", 0),
    ("code_run", 5, "", 0),
    ("code_debug", ["parse", "B"], "B. parse", 1),
    ("code_debug", ["parse", "B"], "The answer is: parse", 1),
    ("code_debug", ["parse", "B"], "The answer is:", 0),
    ("code_debug", ["parse", "B"], "parse", 0),
    ("code_debug", ["parse", "B"], "The correct option is: C", 0),
    ("longbook_choice_eng", ["a boat", "C"], "C", 1),
    ("longbook_choice_eng", ["a boat", "C"], "A boat", 0),  # read as the letter A
    ("longbook_choice_eng", ["a boat", "C"], "a boat", 1),
    ("longbook_choice_eng", ["a boat", "C"], "so the answer is C", 1),
    ("longbook_choice_eng", ["a boat", "C"], "so the answer is", 0),
    ("longbook_choice_eng", ["a boat", "C"], "surely C", 1),
    ("longbook_choice_eng", ["a boat", "C"], "nothing", 0),
    ("longbook_choice_eng", ["a boat", "C"], "", 0),
    ("longbook_qa_eng", ["Rome", "the city of Paris"], "city of Paris", 1),
    ("longbook_qa_chn", ["北京"], "在北京。", 4 / 5),
]


@pytest.mark.parametrize(("task", "reference", "answer", "expected"), CASES)
def test_infinitebench(task, reference, answer, expected):
    assert infinite.SCORES[task](reference, answer) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("task", "target", "question", "answer", "expected"),
    [
        ("qa1", "kitchen", "Where is Mary?", "The most recent location of Mary is Kitchen. The garden", 1),
        ("qa1", "kitchen", "Where is Mary?", "kitchen or garden", 0),
        ("qa1", "kitchen", "Where is Mary?", "", 0),
        # A place of the question does not count, here as the only other one.
        ("qa4", "kitchen", "What is north of the garden?", "The kitchen is north of the garden", 1),
        ("qa8", "apple,milk", "What does Mary carry?", "milk, apple", 1),
        ("qa8", "apple,milk", "What does Mary carry?", "apple", 0),
        ("qa19", "n,w", "How?", "n,w", 1),
        ("qa1", "kitchen", "Where?", "kitchen<example>garden", 1),
        ("qa6", "yes", "Is Mary in the garden?", "YES.", 1),
    ],
)
def test_babilong(task, target, question, answer, expected):
    assert named_alone(LABELS[task], target, question, answer) == expected


def test_babilong_has_labels_for_twenty_tasks():
    assert sorted(LABELS) == sorted(f"qa{n}" for n in range(1, 21))
    assert all(labels for labels in LABELS.values())


def test_needlebench():
    assert found_or_near("The fox is red.", "red", "It is red") == 1
    assert found_or_near("abcd", "zzz", " a b c d ") == pytest.approx(0.2)
    assert found_or_near("abcd", "zzz", "abXd") == pytest.approx(0.2 * 3 / 4)
    assert found_or_near("abcd", "zzz", "") == 0
