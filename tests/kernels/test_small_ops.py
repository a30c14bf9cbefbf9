"""Exact scores, sparse matrix-vector products and integer tiles against their references."""

import pytest
import torch

from keyhole import kernels
from tests.kernels.cases import strided

DTYPES = [torch.float32, torch.bfloat16]


def close(found, expected, terms):
    """Equal up to float32 summation error of so many terms of unit size, and rounding to the dtype."""
    rounding = 2**-8 if found.dtype == torch.bfloat16 else 0.0
    return torch.allclose(found.double(), expected.double(), rtol=1e-5 + rounding, atol=3e-7 * terms)


@pytest.mark.parametrize("slots", [1, 31, 64, 100, 2000])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
def test_exact_scores(any_impl, slots, dtype):
    query, keys = torch.randn(2, 5, 33), strided(torch.randn(2, slots + 2, 33).to(dtype))
    found = kernels.exact_scores(query, keys, 1, slots + 1, scale=0.5, impl=any_impl)
    assert close(found, query.double() @ keys[:, 1:-1].double().transpose(1, 2) * 0.5, 33)


def test_exact_scores_of_nothing(any_impl):
    found = kernels.exact_scores(torch.zeros(2, 3, 8), torch.zeros(2, 9, 8), 4, 4, impl=any_impl)
    assert found.shape == (2, 3, 0)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (31, 65), (100, 63), (257, 1000), (2000, 100)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_skipped_rows_are_not_read(any_impl, share, m, n, dtype):
    m = min(m, 300) if any_impl == "triton" else m  # what is interpreted takes long
    weight, x = torch.randn(m, n).to(dtype), torch.randn(n)
    gate = torch.randn(m) * (torch.rand(m) < share)
    expected = gate.double() * (weight.double() @ x.double())
    weight[gate == 0] = torch.nan
    assert close(kernels.matvec_skip_rows(weight, x, gate, impl=any_impl), expected, n)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (31, 65), (100, 63), (257, 1000), (100, 5000)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_skipped_columns_are_not_read(any_impl, share, m, n, dtype):
    n = min(n, 1100) if any_impl == "triton" else n
    weight = torch.randn(m, n).to(dtype)
    x = torch.randn(m) * (torch.rand(m) < share)
    expected = x.double() @ weight.double()
    weight[x == 0] = torch.nan
    padded = torch.full((m, n + 3), torch.nan, dtype=dtype)
    padded[:, 1:-2] = weight
    assert close(kernels.matvec_skip_columns(padded[:, 1:-2], x, impl=any_impl), expected, m)


def test_result_has_the_dtype_of_the_input(any_impl):
    weight, x = torch.randn(20, 20).bfloat16(), torch.randn(20).bfloat16()
    assert kernels.matvec_skip_rows(weight, x, torch.ones(20), impl=any_impl).dtype == torch.bfloat16
    assert kernels.matvec_skip_columns(weight, x, impl=any_impl).dtype == torch.bfloat16


def test_shapes_and_dtypes_are_checked():
    with pytest.raises(ValueError, match="do not fit query"):
        kernels.exact_scores(torch.zeros(1, 1, 8), torch.zeros(1, 5, 7), 0, 1)
    with pytest.raises(ValueError, match=r"0\.\.6 lie outside 0\.\.5"):
        kernels.exact_scores(torch.zeros(1, 1, 8), torch.zeros(1, 5, 8), 0, 6)
    with pytest.raises(ValueError, match="do not fit weight"):
        kernels.matvec_skip_rows(torch.zeros(2, 3), torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="does not fit weight_t"):
        kernels.matvec_skip_columns(torch.zeros(2, 3), torch.zeros(3))
