"""Packed codes: what is written is read back, and nothing else is touched."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keyhole import kernels


@given(
    rows=st.integers(1, 3),
    subspaces=st.integers(1, 9),
    bits=st.integers(1, 8),
    start=st.integers(0, 150),
    tokens=st.sampled_from([0, 1, 31, 63, 64, 65, 100]),
)
def test_codes_come_back_and_neighbours_stay(rows, subspaces, bits, start, tokens):
    codes = torch.randint(0, 1 << bits, (rows, tokens, subspaces), dtype=torch.uint8)
    buffers = []
    for impl in ("reference", "auto"):
        buffer = kernels.allocate_codes(rows, 300, subspaces, bits)
        neighbours = torch.randint(0, 1 << bits, (rows, 320, subspaces), dtype=torch.uint8).fill_(1)
        kernels.write_codes(buffer, 0, neighbours, bits=bits, impl="reference")
        kernels.write_codes(buffer, start, codes, bits=bits, impl=impl)
        found = kernels.read_codes(buffer, 0, 320, subspaces=subspaces, bits=bits)
        neighbours[:, start : start + tokens] = codes
        assert torch.equal(found, neighbours)
        buffers.append(buffer)
    assert torch.equal(*buffers)


def test_growing_copies_blocks(any_impl):
    codes = torch.randint(0, 16, (2, 128, 6), dtype=torch.uint8)
    small, large = (kernels.allocate_codes(2, n, 6, 4) for n in (128, 256))
    kernels.write_codes(small, 0, codes, bits=4, impl=any_impl)
    large[:, :2] = small
    assert torch.equal(kernels.read_codes(large, 0, 128, subspaces=6, bits=4), codes)


@pytest.mark.parametrize(("bits", "expected"), [(4, 3), (8, 5), (6, 5)])
def test_size_of_a_slot(bits, expected):
    assert kernels.allocate_codes(1, 64, 5, bits).shape == (1, 1, expected * 64)
    assert kernels.allocate_codes(1, 65, 5, bits).shape == (1, 2, expected * 64)


def test_errors_name_the_value_and_the_range():
    buffer = kernels.allocate_codes(1, 64, 4, 4)
    codes = torch.zeros(1, 2, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"63\.\.65 lie outside 0\.\.64"):
        kernels.write_codes(buffer, 63, codes, bits=4)
    with pytest.raises(ValueError, match="bits=9, expected 1 to 8"):
        kernels.allocate_codes(1, 64, 4, 9)
    with pytest.raises(TypeError, match="int64"):
        kernels.write_codes(buffer, 0, codes.long(), bits=4)
    with pytest.raises(ValueError, match="expected uint8"):
        kernels.read_codes(buffer, 0, 1, subspaces=8, bits=4)
