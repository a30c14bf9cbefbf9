"""Whether numbers are finite, by their least and greatest."""

import pytest
import torch

from keyhole.core.scales import all_finite

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_one_bad_number_is_found_wherever_it_is(dtype, bad, size):
    numbers = torch.randn(2, size, 3).to(dtype)
    for place in {0, size // 2, size - 1}:
        found = numbers.clone()
        found[1, place, 2] = bad
        assert not all_finite(found)
        assert not all_finite(found.transpose(0, 2))
        assert not all_finite(found[:, place:])
    assert all_finite(numbers)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_numbers_of_a_type_are_finite(dtype):
    ends = torch.finfo(dtype)
    assert all_finite(torch.tensor([ends.min, ends.max, ends.tiny], dtype=dtype))


def test_no_numbers_are_finite():
    assert all_finite(torch.empty(1, 2, 0, 4))
