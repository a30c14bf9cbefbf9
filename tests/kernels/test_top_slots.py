"""The greatest of many scores, ties to the lower place."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keyhole import kernels


def by_definition(scores, count):
    scores = [-math.inf if score != score else score for score in scores]
    return sorted(sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:count])


@pytest.mark.parametrize("n", [1, 2, 31, 64, 100, 5000])
def test_sizes(any_impl, n):
    scores = torch.randn(3, n)
    for count in {0, 1, n // 2, n - 1, n}:
        found = kernels.top_slots(scores, count, impl=any_impl)
        assert found.dtype == torch.int64
        assert found.tolist() == [by_definition(row, count) for row in scores.tolist()]


@pytest.mark.parametrize("count", range(13))
def test_ties_and_odd_numbers(any_impl, count):
    nan, inf = math.nan, math.inf
    row = [0.0, -0.0, nan, -inf, inf, 1e-45, -1e-45, 2.0, 2.0, -inf, nan, 3e38, -3e38]
    assert kernels.top_slots(torch.tensor(row), count, impl=any_impl).tolist() == by_definition(row, count)


@given(st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, math.nan]), min_size=1, max_size=80), st.data())
def test_many_ties(row, data):
    count = data.draw(st.integers(0, len(row)))
    expected = by_definition(row, count)
    for impl in ("auto", "reference"):
        assert kernels.top_slots(torch.tensor(row), count, impl=impl).tolist() == expected


def test_any_shape_and_stride(any_impl):
    scores = torch.randn(3, 2, 50).transpose(0, 1)[..., ::2]
    found = kernels.top_slots(scores, 7, impl=any_impl)
    assert found.shape == (2, 3, 7)
    assert found[1, 2].tolist() == by_definition(scores[1, 2].tolist(), 7)


@pytest.mark.parametrize("count", [-1, 6])
def test_count_is_checked(count):
    with pytest.raises(ValueError, match=r"expected 0 to 5"):
        kernels.top_slots(torch.zeros(2, 5), count)
