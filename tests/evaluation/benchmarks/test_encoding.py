"""Prompts as tokens: chat form, cuts, and what turns share."""

import pytest

from keyhole.evaluation.benchmarks.base import Sample, Turn
from keyhole.evaluation.benchmarks.encoding import Encoder, TooLongError, common
from tests.evaluation.small_text import byte_tokenizer

TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"


def _sample(prompt: str = "0123456789", *turns: Turn, **changes) -> Sample:
    return Sample("task", "id", prompt, turns or (Turn(None, 4),), **changes)


def _chatty():
    tokenizer = byte_tokenizer().__class__(tokenizer_object=byte_tokenizer().backend_tokenizer)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _texts(encoded, tokenizer=None) -> list[str]:
    return [(tokenizer or byte_tokenizer()).decode(turn) for turn in encoded.turns]


def test_a_single_turn_shares_all_but_its_last_token():
    found = Encoder(byte_tokenizer()).encode(_sample(reply="!"))
    assert _texts(found) == ["0123456789!"]
    assert (found.shared, found.cut) == (10, 0)


@pytest.mark.parametrize(("most", "prompt"), [(14, "0123456789"), (13, "01236789"), (10, "012789")])
def test_a_prompt_is_cut_in_the_middle_to_the_range(most, prompt):
    found = Encoder(byte_tokenizer(), most=most).encode(_sample(cut=True))
    assert _texts(found) == [prompt]
    assert found.cut == 10 - len(prompt)


def test_a_given_length_cuts_before_the_range_does():
    found = Encoder(byte_tokenizer(), most=100, longest=4).encode(_sample(cut=True))
    assert _texts(found) == ["0189"]


def test_what_is_not_cut_is_refused():
    with pytest.raises(
        TooLongError, match="has 10 tokens and the answer up to 4, beyond the model's range of 13"
    ):
        Encoder(byte_tokenizer(), most=13).encode(_sample())
    assert Encoder(byte_tokenizer(), most=14).encode(_sample()).cut == 0
    assert Encoder(byte_tokenizer(), most=14, longest=4).encode(_sample()).cut == 0


def test_an_answer_longer_than_the_range_is_refused():
    with pytest.raises(TooLongError):
        Encoder(byte_tokenizer(), most=4).encode(_sample(cut=True))


def test_questions_share_the_context_and_not_their_common_words():
    turns = (Turn(None, 2, tail="Key 1?"), Turn(None, 2, tail="Key 2?"))
    found = Encoder(byte_tokenizer()).encode(_sample("context: ", *turns))
    assert _texts(found) == ["context: Key 1?", "context: Key 2?"]
    assert found.shared == len("context: ")
    alone = Encoder(byte_tokenizer()).encode(_sample("context: ", turns[0]))
    assert alone.shared == len("context: ")


def test_a_conversation_holds_reference_answers_and_shares_the_first_prompt():
    turns = (
        Turn(None, 2),
        Turn(None, 2, history=(("A1", "Q2"),)),
        Turn(None, 2, history=(("A1", "Q2"), ("A2", "Q3"))),
    )
    found = Encoder(byte_tokenizer()).encode(_sample("cQ1", *turns))
    assert _texts(found) == ["cQ1", "cQ1A1\n\nQ2", "cQ1A1\n\nQ2A2\n\nQ3"]
    assert found.shared == 2


def test_chat_form():
    turns = (Turn(None, 2), Turn(None, 2, history=(("A1", "Q2"),)))
    found = Encoder(_chatty()).encode(_sample("cQ1", *turns, reply="It"))
    assert _texts(found, _chatty()) == [
        "<user>cQ1<assistant>It",
        "<user>cQ1<assistant>A1<user>Q2<assistant>It",
    ]


@pytest.mark.parametrize(
    ("asked", "benchmarks", "used"),
    [(None, True, True), (None, False, False), (True, False, True), (False, True, False)],
)
def test_who_decides_on_chat_form(asked, benchmarks, used):
    text = _texts(Encoder(_chatty(), chat=asked).encode(_sample(chat=benchmarks)), _chatty())[0]
    assert text.startswith("<user>") == used


def test_chat_form_without_a_template():
    assert _texts(Encoder(byte_tokenizer()).encode(_sample(chat=True))) == ["0123456789"]
    with pytest.raises(ValueError, match="no chat template"):
        Encoder(byte_tokenizer(), chat=True)


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="at least 2 tokens"):
        Encoder(byte_tokenizer()).encode(_sample("a"))


def test_common():
    assert common([[1, 2, 3], [1, 2, 4]], most=9) == 2
    assert common([[1, 2], [1, 2, 3]], most=9) == 2
    assert common([[1, 2, 3]], most=2) == 2
    assert common([[1], [2]], most=1) == 0
