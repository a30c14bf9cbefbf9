"""Needles in natural words, in the shipped texts."""

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing

from keyhole.evaluation.facts import DEPTHS, FACTS
from keyhole.evaluation.fitting import count_tokens
from keyhole.evaluation.tasks import FACT_TASKS, SINGLE_TURN, TASKS, score
from keyhole.evaluation.texts import texts
from tests.evaluation.small_text import END, TEXT, byte_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    made = byte_tokenizer.__wrapped__()
    made.chat_template = TEMPLATE
    return made


def make(name, tokenizer, tokens=3000, seed=0):
    return TASKS[name].make(np.random.default_rng(seed), TEXT, tokenizer, tokens)


def fact_of(sample):
    return next(fact for fact in FACTS if (fact.answer,) == sample.answers)


def test_facts_are_about_different_things_that_the_texts_do_not_tell():
    assert len(FACTS) >= 12
    assert len({fact.answer for fact in FACTS}) == len(FACTS)
    whole = " ".join(text.text for text in texts()).lower()
    for fact in FACTS:
        assert fact.answer.lower() not in whole
        assert fact.answer in fact.end
        assert fact.answer.lower() not in (fact.beginning + fact.question).lower()


@pytest.mark.parametrize("name", FACT_TASKS)
def test_a_prompt_fills_its_tokens_and_has_each_fact_once(name, tokenizer):
    for seed in range(3):
        sample = make(name, tokenizer, seed=seed)
        assert 2950 <= count_tokens(tokenizer, sample.prompt) <= 3000
        assert sample.context.count(fact_of(sample).sentence) == 1
        assert sum(fact.sentence in sample.context for fact in FACTS) == len(DEPTHS)
        assert sample.answers[0] not in sample.question


def test_facts_are_hidden_at_the_given_depths_and_asked_for_at_each(tokenizer):
    asked = set()
    for seed in range(24):
        sample = make("fact", tokenizer, tokens=6000, seed=seed)
        places = sorted(sample.context.find(fact.sentence) / len(sample.context) for fact in FACTS)[-5:]
        assert np.allclose(places, DEPTHS, atol=0.15)
        place = sample.context.find(fact_of(sample).sentence) / len(sample.context)
        asked.add(int(np.abs(np.array(DEPTHS) - place).argmin()))
    assert asked == set(range(len(DEPTHS)))


def test_the_sentence_is_continued(tokenizer):
    sample = make("fact", tokenizer)
    fact = fact_of(sample)
    assert sample.question == f"\n{fact.beginning}"
    assert score(sample, f" {fact.end}") == 1
    assert sample.max_new_tokens >= count_tokens(tokenizer, f" {fact.end}")


def test_the_question_has_the_chat_form(tokenizer):
    sample = make("fact_chat", tokenizer)
    assert sample.prompt.startswith("<user>")
    assert sample.prompt.endswith(f"\n\n{fact_of(sample).question}</user><assistant>")


def test_the_haystack_is_the_shipped_texts(tokenizer):
    assert make("fact", tokenizer) == TASKS["fact"].make(
        np.random.default_rng(0),
        None,
        tokenizer,
        3000,  # type: ignore[arg-type]
    )


def test_a_start_token_that_the_tokenizer_adds_is_not_repeated():
    starting = byte_tokenizer.__wrapped__()
    starting.chat_template, starting.bos_token = TEMPLATE, END
    assert make("fact_chat", starting).prompt.startswith(f"{END}<user>")
    number = starting.convert_tokens_to_ids(END)
    starting.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{END} $A", special_tokens=[(END, number)]
    )
    prompt = make("fact_chat", starting).prompt
    assert prompt.startswith("<user>")
    assert starting(prompt).input_ids.count(number) == 1


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(ValueError, match="'fact_chat' needs a tokenizer with a chat template"):
        make("fact_chat", byte_tokenizer())
    with pytest.raises(ValueError, match=r"'fact' needs at least \d+ tokens, got 20"):
        make("fact", byte_tokenizer(), tokens=20)


def test_they_are_asked_for_by_name_only():
    assert not set(FACT_TASKS) & set(SINGLE_TURN)
