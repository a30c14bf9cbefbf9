"""Training rows are, token for token, what the tokenizer makes of the evaluation format."""

import re

import numpy as np
import pytest

from keyhole.evaluation import phrases
from keyhole.evaluation.haystack import Haystack
from keyhole.evaluation.words import NOUNS
from keyhole.training.batches import LABELS, repeats, skipping_positions
from keyhole.training.config import TrainConfig
from keyhole.training.curriculum import Curriculum
from keyhole.training.forms import Phrasebook, Wording
from keyhole.training.lessons import build_lessons
from keyhole.training.tokenizer import END, build_tokenizer


@pytest.fixture(scope="module")
def haystack():
    return Haystack.from_environment("train")


@pytest.fixture(scope="module")
def tokenizer(haystack):
    return build_tokenizer(haystack.sentences)


@pytest.fixture(scope="module")
def lessons(tokenizer, haystack):
    return build_lessons(tokenizer, haystack)


def flat(tokenizer, *words):
    return [tokenizer(f" {word}", add_special_tokens=False).input_ids[0] for word in " ".join(words).split()]


def test_every_task_word_is_one_token(tokenizer):
    Phrasebook(tokenizer)
    assert len(tokenizer) <= 4096


def test_a_tokenizer_that_splits_words_is_refused(tokenizer):
    book = Phrasebook(tokenizer)
    with pytest.raises(ValueError, match="splits"):
        book.words(["antidisestablishmentarianism"])


def test_forms_agree_with_the_text(tokenizer):
    wording = Wording(Phrasebook(tokenizer))
    keys, values = ["wild zebra", "calm fox", "tidy owl"], ["512", "999", "123"]
    names = list(NOUNS[7:10])
    chain = phrases.chain(values[0], names)
    pairs = [
        (wording.needle, (keys[0], values[0]), phrases.needle(keys[0], values[0])),
        (wording.assign, (names[0], values[0]), chain[0]),
        (wording.hop, names[:2], chain[1]),
        (wording.ask_one.form, (keys[0], values[0]), f"{phrases.ask_one(keys[0])} {values[0]}.{END}"),
        *zip(wording.numbered(3), [(keys[0], *values)] * 3, phrases.numbered(keys[0], values), strict=True),
        (
            wording.ask_all(3).form,
            (keys[0], *values),
            phrases.ask_all(keys[0]) + phrases.reply_all(keys[0], values) + END,
        ),
        (
            wording.ask_several(3).form,
            (*keys, *values),
            phrases.ask_several(keys) + phrases.reply_several(keys, values) + END,
        ),
        (
            wording.ask_chain(3).form,
            (*names, values[0]),
            phrases.ask_chain(names[-1]) + phrases.reply_chain(values[0], names) + END,
        ),
    ]
    for form, arguments, text in pairs:
        assert form.fill(flat(tokenizer, *arguments)) == tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("name", ["tasks", "lists"])
@pytest.mark.parametrize("length", [256, 511, 1024])
def test_rows_agree_with_the_text(name, length, lessons, tokenizer):
    for seed in range(8):
        row = lessons[name].row(np.random.default_rng(seed), length)
        assert len(row.tokens) == len(row.asked) == length
        context, *rest = _split(row.tokens, tokenizer.convert_tokens_to_ids("Ċ"), tokenizer)
        for part in rest:
            assert part == tokenizer(tokenizer.decode(part), add_special_tokens=False).input_ids
        whole = tokenizer(tokenizer.decode(context[1:])).input_ids
        assert len(whole) <= len(context)  # a sentence cut inside a word may be spelt shorter
        if name == "lists":
            assert whole == context


def _split(tokens, newline, tokenizer):
    """The context and the questions, each with its line break."""
    borders = [i for i, t in enumerate(tokens) if t == newline]
    assert all(tokenizer.decode([tokens[i]]) == "\n" for i in borders)
    ends = [0, *borders, len(tokens)]
    return [tokens[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]  # noqa: RUF007


@pytest.mark.parametrize("length", [256, 600, 2048])
def test_answers_asked_stand_in_the_context(length, lessons):
    for seed in range(10):
        row = lessons["tasks"].row(np.random.default_rng(seed), length)
        first = row.asked.index(next(a for a in row.asked if a))
        context = row.tokens[:first]
        answers = {t for t, a in zip(row.tokens, row.asked, strict=True) if a > LABELS.index("form")}
        assert answers <= set(context)


def test_several_values_are_answered_by_number(lessons, tokenizer):
    label = LABELS.index("multivalue")
    seen = 0
    for seed in range(40):
        row = lessons["tasks"].row(np.random.default_rng(seed), 256)
        asked = [i for i, a in enumerate(row.asked) if a == label]
        if asked:
            text = tokenizer.decode(row.tokens)
            key = re.search(r"All secret codes of ([a-z]+ [a-z]+):", text)[1]
            answer = tokenizer.decode([row.tokens[i] for i in asked])
            coded = re.findall(rf"The secret code (\d) of {key} is (\d+)\.", text)
            assert re.findall(r"\d{3}", answer) == [value for _, value in sorted(coded)]
            seen += 1
    assert seen > 5


def test_lists_are_answered_in_different_orders(lessons):
    label = LABELS.index("frequent_words")
    orders = set()
    for seed in range(40):
        row = lessons["lists"].row(np.random.default_rng(seed), 256)
        asked = [token for token, a in zip(row.tokens, row.asked, strict=True) if a == label]
        counts = [-row.tokens.count(token) for token in asked]
        orders.add(tuple(np.argsort(counts)))
    assert len(orders) > 4


def test_repeats_ask_only_what_was_seen():
    batch = repeats(np.random.default_rng(0), 8, 64, 1000, begin=0)
    for tokens, asked in zip(batch.tokens.tolist(), batch.asked.tolist(), strict=True):
        assert all(token in tokens[:i] for i, (token, a) in enumerate(zip(tokens, asked, strict=True)) if a)


@pytest.mark.parametrize("span", [0, 100, 5000])
def test_positions_grow_and_stay_in_the_span(span):
    for seed in range(20):
        positions = skipping_positions(np.random.default_rng(seed), [0, 10, 50], 100, span)
        steps = np.diff(positions)
        assert positions[0] == 0
        assert steps.min() == 1
        assert np.count_nonzero(steps > 1) <= 3
        assert positions[-1] < max(span, 100)


def test_every_stage_makes_its_batch(tokenizer):
    config = TrainConfig()
    curriculum = Curriculum(config, tokenizer)
    for index, stage in enumerate(config.stages):
        batch, again = (curriculum.batch(index, np.random.default_rng(3)) for _ in range(2))
        assert batch.tokens.shape == batch.positions.shape == batch.asked.shape == (stage.batch, stage.length)
        assert all((a == b).all() for a, b in zip(batch, again, strict=True))
        assert int(batch.tokens.max()) < config.shape.vocabulary
        assert (batch.asked > 0).any()
