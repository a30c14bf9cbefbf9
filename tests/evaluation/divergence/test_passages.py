from typing import NamedTuple

import pytest
import torch

from keyhole.evaluation.divergence import passages
from keyhole.evaluation.divergence.batching import batches, fitting
from tests.evaluation.small_text import byte_model, byte_tokenizer


class Text(NamedTuple):
    name: str
    text: str


LONG = Text("long", "the sea is calm " * 100)


def test_the_first_tokens_of_each_text():
    one, two = passages([LONG, Text("other", "x" * 200)], byte_tokenizer(), 100, 20)
    assert one.tokens.tolist() == byte_tokenizer()(LONG.text).input_ids[:120]
    assert (one.name, two.name, len(two.tokens)) == ("long", "other", 120)
    assert two.digest != one.digest == passages([LONG], byte_tokenizer(), 110, 10)[0].digest


def test_texts_that_are_too_short_are_named_with_their_lengths():
    sources = [Text("brief", "x" * 119), LONG, Text("briefer", "y")]
    with pytest.raises(ValueError, match=r"take 120.*brief \(119\), briefer \(1\)"):
        passages(sources, byte_tokenizer(), 100, 20)


def test_names_and_texts_are_needed():
    with pytest.raises(ValueError, match="called 'long'"):
        passages([LONG, LONG], byte_tokenizer(), 10, 2)
    with pytest.raises(ValueError, match="no text"):
        passages([], byte_tokenizer(), 10, 2)


@pytest.mark.parametrize(("most", "sizes"), [(8, [8]), (100, [8]), (5, [4, 4]), (3, [2, 3, 3]), (1, [1] * 8)])
def test_batches_are_even(most, sizes):
    found = batches(list(range(8)), most)
    assert [len(batch) for batch in found] == sizes
    assert [item for batch in found for item in batch] == list(range(8))


def test_as_many_texts_as_fit(monkeypatch):
    def fit(free, **changes):
        monkeypatch.setattr("keyhole.evaluation.divergence.batching.free_bytes", lambda _: free)
        return fitting(byte_model(), **({"context": 100, "tokens": 10, "queries": False} | changes))

    assert fit(0) == 1
    assert fit(1 << 30) > fit(1 << 30, context=800) > fit(1 << 30, context=800, queries=True) > 1
    # A token's keys take 2 layers x 2 heads x 16 numbers of four bytes.
    least = 110 * 2 * 2 * 2 * 16 * torch.float32.itemsize
    assert fit(1 << 30) < (1 << 30) / least
