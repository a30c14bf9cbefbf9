import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keyhole.feedforward.histogram import Histogram

SHARES = torch.linspace(0, 1, 11, dtype=torch.float64)


def counted(*portions):
    histogram = Histogram()
    for portion in portions:
        histogram.add(portion)
    return histogram.quantiles(SHARES)


@pytest.mark.parametrize("count", [1, 31, 1000, 100_003])
def test_quantiles_are_the_exact_ones_to_a_bin(count):
    values = torch.randn(count, generator=torch.Generator().manual_seed(count)).abs() ** 3
    ordered = values.sort().values
    found = counted(values)
    for share, quantile in zip(SHARES[1:].tolist(), found[1:].tolist(), strict=True):
        exact = float(ordered[max(0, -(-round(share * 10) * count // 10) - 1)])
        assert abs(quantile - exact) <= exact / 128


@given(st.permutations(range(4)), st.integers(1, 50))
def test_portions_and_their_order_do_not_matter(order, size):
    # Documents of different lengths weigh by their tokens: a mean of their quantiles would not.
    generator = torch.Generator().manual_seed(size)
    portions = [torch.rand(size * (i + 1), generator=generator) * 10**i for i in range(4)]
    assert torch.equal(counted(torch.cat(portions)), counted(*(portions[i] for i in order)))


def test_zeros_and_the_extremes():
    values = torch.tensor([0.0, 0.0, 0.0, 1e-38, 3e38])
    found = counted(values)
    assert found[0] == 0
    assert found[5] < 1e-38
    assert 2.9e38 < found[-1] < 3.1e38


def test_bfloat16_is_counted_as_float32():
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(counted(values), counted(values.float()))


def test_nothing_counted():
    with pytest.raises(ValueError, match="nothing was counted"):
        Histogram().quantiles(SHARES)
