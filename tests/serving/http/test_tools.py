"""Calls of tools in the text of an answer, however it is cut into pieces."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyhole.serving.http.token_text import token_bytes
from keyhole.serving.http.tools import CallReader
from keyhole.serving.tokenizing import longest_token
from tests.evaluation.small_text import byte_tokenizer

CALL = '<tool_call>{"name": "f", "arguments": {"a": "<"}}</tool_call>'
PARTS = st.sampled_from([CALL, "<tool_call>", "</tool_call>", "words", "<", "<tool", "\n", '{"name": 1}'])


def read(pieces, active=True):
    reader = CallReader(active)
    words = "".join([*map(reader.put, pieces), reader.end()])
    return words, [(call.name, call.arguments) for call in reader.calls]


@given(st.lists(PARTS, max_size=6), st.data())
def test_pieces_give_what_the_whole_text_gives(parts, data):
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(pieces) == read([text])


@given(st.lists(PARTS, max_size=6))
def test_nothing_of_a_text_is_lost_or_made_up(parts):
    text = "".join(parts)
    words, calls = read([text])
    assert len(words) + sum(len(CALL) for _ in calls) >= len(text) - len(calls) * len(CALL)
    if not calls:
        assert words == text
    assert read([text], active=False) == (text, [])


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>no json</tool_call>",
        '<tool_call>{"name": "f", "arguments": 1}</tool_call>',
        "<tool_call>{",
        "a <",
    ],
)
def test_what_is_no_call_stays_text(text):
    assert read(text) == (text, [])


def test_a_call_at_the_end_need_not_be_closed():
    words, ((name, arguments),) = read(["Now: ", CALL.removesuffix("</tool_call>")])
    assert (words, name, json.loads(arguments)) == ("Now: ", "f", {"a": "<"})


def test_tokens_of_pieces_of_characters_have_their_bytes():
    tokenizer = byte_tokenizer()
    ids = tokenizer("aü🌊\0", add_special_tokens=False).input_ids
    assert bytes(byte for token in ids for byte in token_bytes(tokenizer, token)).decode() == "aü🌊\0"
    assert longest_token(tokenizer) == len("<|end|>")
