import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from keyhole.evaluation.fitting import count_tokens, largest_fit, words_of
from keyhole.evaluation.haystack import Haystack
from keyhole.evaluation.phrases import COMMON, draw_common, draw_frequent, draw_keys, draw_values
from keyhole.evaluation.tasks import FACT_TASKS, TASKS, Turn, score
from keyhole.evaluation.words import CODED_WORDS, WORDS
from keyhole.training.tokenizer import build_tokenizer

OF_A_HAYSTACK = [name for name in TASKS if name not in FACT_TASKS]
NEEDLE_TASKS = ("single", "multikey", "multivalue", "multiquery", "variables")


@pytest.fixture(scope="module")
def haystack():
    return Haystack.from_environment("held-out")


@pytest.fixture(scope="module")
def tokenizer(haystack):
    return build_tokenizer(haystack.sentences)


def make(name, haystack, tokenizer, tokens, seed=0):
    return TASKS[name].make(np.random.default_rng(seed), haystack, tokenizer, tokens)


@pytest.mark.parametrize("name", OF_A_HAYSTACK)
@pytest.mark.parametrize("tokens", [333, 1001, 2048])
def test_prompt_fills_its_tokens(name, tokens, haystack, tokenizer):
    longest = max(12, int(words_of(haystack, tokenizer).tokens.max()))
    for seed in range(3):
        used = count_tokens(tokenizer, make(name, haystack, tokenizer, tokens, seed).prompt)
        assert tokens - longest <= used <= tokens


def test_a_context_longer_than_the_haystack_goes_round(tokenizer):
    short = Haystack.from_text("It was the best of times. It was the worst of times.")
    sample = make("single", short, tokenizer, 1500)
    assert 1488 <= count_tokens(tokenizer, sample.prompt) <= 1500


@pytest.mark.parametrize("name", OF_A_HAYSTACK)
def test_same_seed_same_sample(name, haystack, tokenizer):
    first, again, other = (make(name, haystack, tokenizer, 500, seed) for seed in (7, 7, 8))
    assert first == again
    assert first != other


@pytest.mark.parametrize("name", NEEDLE_TASKS)
def test_answers_are_in_the_context_once_and_not_in_the_question(name, haystack, tokenizer):
    sample = make(name, haystack, tokenizer, 700)
    for answer in sample.answers:
        assert len(re.findall(rf" is {answer}\.", sample.context)) == 1
        assert answer not in sample.question


@pytest.mark.parametrize("name", OF_A_HAYSTACK)
def test_reply_fits_into_max_new_tokens(name, haystack, tokenizer):
    sample = make(name, haystack, tokenizer, 700)
    assert count_tokens(tokenizer, " ".join(sample.answers)) <= sample.max_new_tokens <= 80


@pytest.mark.parametrize("name", OF_A_HAYSTACK)
def test_too_few_tokens_are_refused(name, haystack, tokenizer):
    with pytest.raises(ValueError, match=rf"'{name}' needs at least \d+ tokens, got 20"):
        make(name, haystack, tokenizer, 20)


def test_values_avoid_the_numbers_of_the_text():
    taken = frozenset(range(100, 990))
    assert set(draw_values(np.random.default_rng(0), 10, taken)) == {str(n) for n in range(990, 1000)}
    assert len(set(draw_values(np.random.default_rng(0), 11, taken))) == 11


def test_needles_stand_at_all_depths(haystack, tokenizer):
    depths = []
    for seed in range(40):
        sample = make("single", haystack, tokenizer, 600, seed)
        depths.append(sample.context.index(sample.answers[0]) / len(sample.context))
    assert min(depths) < 0.2
    assert max(depths) > 0.8
    assert 0.3 < np.mean(depths) < 0.7


def test_distractors_have_other_keys(haystack, tokenizer):
    sample = make("multikey", haystack, tokenizer, 600)
    asked = sample.question.removeprefix("\nThe secret code of ").removesuffix(" is")
    assert sample.context.count("The secret code of ") == 16
    assert sample.context.count(f"The secret code of {asked} is") == 1


def test_multiquery_asks_in_the_order_of_its_answers(haystack, tokenizer):
    sample = make("multiquery", haystack, tokenizer, 600)
    keys = re.findall(r"\d ([a-z]+ [a-z]+)[,:]", sample.question)
    assert sample.question.endswith(f": 1 {keys[0]} is")
    expected = [f"The secret code of {k} is {v}." for k, v in zip(keys, sample.answers, strict=True)]
    assert all(statement in sample.context for statement in expected)


def test_variables_form_one_chain(haystack, tokenizer):
    sample = make("variables", haystack, tokenizer, 700)
    asked = sample.question.removeprefix("\nFollow ").split(".")[0]
    for name, source in pairwise([asked, *sample.answers]):
        assert f"The value of {name} is {source}." in sample.context
    assert sample.answers[-1].isdigit()


def test_keys_and_values_are_distinct():
    rng = np.random.default_rng(0)
    for draw in (draw_keys, draw_values):
        drawn = draw(rng, 500)
        assert len(set(drawn)) == 500


@pytest.mark.parametrize("items", [60, 100, 437, 4000])
def test_common_words_are_far_more_common(items):
    listed, answers = draw_common(np.random.default_rng(items), items)
    counts = Counter(listed.tolist())
    others = [n for word, n in counts.items() if word not in answers]
    assert len(listed) == items
    assert len(answers) == COMMON
    assert min(counts[word] for word in answers.tolist()) >= 5 * max(others)


@pytest.mark.parametrize("items", [60, 437, 4000])
def test_frequent_words_are_ranked(items):
    listed, answers = draw_frequent(np.random.default_rng(items), items)
    ranked = [word for word, _ in Counter(listed.tolist()).most_common(4)]
    assert len(listed) == items
    assert ranked[:3] == answers.tolist()


@pytest.mark.parametrize("draw", [draw_common, draw_frequent])
def test_short_lists_are_refused(draw):
    with pytest.raises(ValueError, match="too short"):
        draw(np.random.default_rng(0), 5)


def test_no_word_is_part_of_another():
    for words in (WORDS, CODED_WORDS):
        assert len(set(words)) == len(words)
        assert not [(a, b) for a in words for b in words if a != b and a in b]


@pytest.mark.parametrize(
    ("generated", "expected"),
    [
        ("", 0.0),
        ("123", 0.5),
        ("so: 789, then 123.", 1.0),
        ("12 3", 0.0),
        ("AMBER", 0.0),
    ],
)
def test_score_is_the_share_found(generated, expected):
    assert score(Turn("", ("123", "789"), 8), generated) == expected


def test_score_ignores_case():
    assert score(Turn("", ("amber falcon",), 8), "Amber Falcon") == 1.0


@pytest.mark.parametrize("limit", [0, 1, 17, 1000])
@pytest.mark.parametrize("guess", [0, 3, 40, 900])
def test_largest_fit_finds_the_border(limit, guess):
    assert largest_fit(lambda n: 3 * n, limit, guess) == limit // 3


def test_largest_fit_refuses_what_never_fits():
    with pytest.raises(ValueError, match="needs at least 9 tokens, got 5"):
        largest_fit(lambda n: 9 + n, 5, 100)
