"""Sets of positions come back as they were, in at most the bytes that are stated."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyhole.view.coding import decode_set, encode_set, from_text, read_varints, split_sets, to_text, varints

SETS = st.one_of(
    st.sets(st.integers(0, 300)),
    st.sets(st.integers(0, 1 << 30), max_size=40),
    st.builds(lambda a, b: set(range(a, a + b)), st.integers(0, 10_000), st.integers(0, 5000)),
)


def array(numbers):
    return np.array(sorted(numbers), np.int64)


@given(st.lists(st.integers(0, 2**62)))
def test_numbers_come_back(numbers):
    coded = varints(np.array(numbers, np.int64))
    assert read_varints(coded).tolist() == numbers
    assert len(coded) == sum(max(1, -(-number.bit_length() // 7)) for number in numbers)


@given(SETS)
def test_sets_come_back(members):
    assert decode_set(encode_set(array(members))).tolist() == sorted(members)


@given(SETS)
def test_a_set_takes_no_more_than_a_bitmap(members):
    top = max(members, default=-1) + 1
    body = -(-top // 8)
    assert len(encode_set(array(members))) <= body + max(1, -(-(2 * body + 1).bit_length() // 7))


def test_ranges_take_a_few_bytes():
    assert len(encode_set(np.arange(5, 100_000))) <= 6


@given(st.lists(SETS, max_size=6))
def test_sets_one_behind_the_other(several):
    coded = [encode_set(array(members)) for members in several]
    assert split_sets(b"".join(coded), len(coded)) == coded
    with pytest.raises(ValueError, match="do not hold"):
        split_sets(b"".join(coded) + b"\x00", len(coded))


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_what_is_cut_off_is_refused(cut):
    coded = encode_set(array(range(0, 900, 7)))
    with pytest.raises(ValueError, match=r"cut off|ends inside"):
        decode_set(coded[:-cut])


@given(st.binary())
def test_base64_comes_back(data):
    assert from_text(to_text(data)) == data
