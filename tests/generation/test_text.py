"""Text of a stream of tokens: complete characters, stop strings, nothing sent that is taken back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyhole.generation.text import TextWriter, check_stop
from tests.evaluation.small_text import byte_tokenizer


def written(text, stop=()):
    pieces = []
    tokenizer = byte_tokenizer()
    writer = TextWriter(tokenizer, stop, pieces.append)
    for token in tokenizer(text).input_ids:
        writer.put(token)
        if writer.stopped:
            break
    writer.end()
    return writer, pieces


@given(
    st.text(alphabet="abé漢 \n", max_size=30), st.lists(st.text("abé", min_size=1, max_size=4), max_size=2)
)
def test_text_ends_before_the_first_stop_string(text, stop):
    writer, pieces = written(text, stop)
    places = [at for string in stop if (at := text.find(string)) >= 0]
    assert writer.text == "".join(pieces)
    assert writer.stopped == bool(places)
    # Where two stop strings overlap, the one that is complete first ends the text.
    ends = [(text.find(string) + len(string), text.find(string)) for string in stop if string in text]
    first = min(ends)[0] if ends else None
    expected = text if first is None else text[: min(start for end, start in ends if end == first)]
    assert writer.text == expected


def test_a_character_is_sent_whole():
    writer, pieces = written("漢é")
    assert pieces == ["漢", "é"]
    assert writer.text == "漢é"


def test_what_may_begin_a_stop_string_waits():
    pieces = []
    tokenizer = byte_tokenizer()
    writer = TextWriter(tokenizer, ["END"], pieces.append)
    for token in tokenizer("aENxEN").input_ids:
        writer.put(token)
    assert pieces == ["a", "ENx"]
    writer.end()
    assert pieces == ["a", "ENx", "EN"]


def test_stop_strings():
    assert check_stop("a") == ("a",)
    assert check_stop(["a", "b"]) == ("a", "b")
    with pytest.raises(ValueError, match="at least one character"):
        check_stop(["a", ""])
