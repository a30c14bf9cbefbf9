"""Each token of a prompt stands for the characters that it was made of."""

import numpy as np
import pytest

from keyhole import default_model
from keyhole.generation import load_model
from keyhole.view.spelling import as_units, decoded, spell
from tests.evaluation.small_text import byte_tokenizer

TEXT = "A text, with caf\u00e9 and \u4e2d\u6587 and \U0001f511!\n\n<script>alert(1)</script>  two  spaces\n"


@pytest.fixture(scope="module")
def tokenizer():
    return load_model(default_model()).tokenizer


def pieces(text, spans):
    return [text[start:stop] for start, stop in spans]


@pytest.mark.parametrize("kind", ["byte", "embedded"])
def test_offsets_cover_the_text(kind, tokenizer):
    one = byte_tokenizer() if kind == "byte" else tokenizer
    ids = one(TEXT, add_special_tokens=False).input_ids
    text, spans = spell(one, ids, TEXT)
    assert text == TEXT
    assert len(spans) == len(ids)
    assert (np.diff(spans[:, 0]) >= 0).all()
    assert spans[-1, 1] == len(TEXT)
    covered = {at for start, stop in spans for at in range(start, stop)}
    assert covered == set(range(len(TEXT)))


def test_offsets_and_decoding_agree(tokenizer):
    ids = tokenizer(TEXT, add_special_tokens=False).input_ids
    text, spans = decoded(tokenizer, ids)
    assert text == TEXT
    np.testing.assert_array_equal(spans, spell(tokenizer, ids, TEXT)[1])


def test_parts_that_were_tokenised_alone(tokenizer):
    """Where two parts meet the ids are not those of the whole text, and a special token is in front."""
    head, tail = "The first par", "t and the second."
    ids = [token for part in (head, tail) for token in tokenizer(part, add_special_tokens=False).input_ids]
    whole = tokenizer(head + tail, add_special_tokens=False).input_ids
    assert ids != whole
    text, spans = spell(tokenizer, ids, head + tail)
    assert "".join(pieces(text, spans)) == head + tail
    front = tokenizer.eos_token_id
    assert front is not None
    _, behind = spell(tokenizer, [front, *whole], head + tail)
    assert behind[0].tolist() == [0, 0]
    np.testing.assert_array_equal(behind[1:], spell(tokenizer, whole, head + tail)[1])


def test_units_are_those_of_utf_16():
    text = "a\U0001f511b\u00e9"
    spans = as_units(text, np.array([[0, 1], [1, 2], [2, 4]]))
    encoded = text.encode("utf-16-le")
    assert [encoded[2 * a : 2 * b].decode("utf-16-le") for a, b in spans] == ["a", "\U0001f511", "b\u00e9"]
