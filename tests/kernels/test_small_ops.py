"""Exact scores, sparse matrix-vector products and integer tiles against their references."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keyhole import kernels
from tests.kernels.cases import LAYOUTS, in_blocks, strided

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


@pytest.mark.parametrize("block_size", [1, 13, 16, 128])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
def test_exact_scores_in_blocks(any_impl, block_size, layout, dtype):
    query, keys = torch.randn(4, 5, 33), torch.randn(2, 2, 150, 33).to(dtype)
    for first, last in ((0, 128), (3, 150), (127, 129), (5, 5)):
        cache, table = in_blocks(keys, [first] * 2, [last] * 2, block_size=block_size, layout=layout)
        found = kernels.exact_scores(query, cache, first, last, scale=0.5, block_table=table, impl=any_impl)
        expected = query.double() @ keys.flatten(0, 1)[:, first:last].double().transpose(1, 2) * 0.5
        assert found.shape == expected.shape
        assert close(found, expected, 33)


@pytest.mark.usefixtures("level")
@given(
    st.integers(1, 8),
    st.integers(32, 256),
    st.integers(1, 140),
    st.integers(1, 300),
    st.sampled_from(LAYOUTS),
)
def test_exact_scores_in_blocks_are_those_of_one_piece(group, size, block_size, tokens, layout):
    query, keys = torch.randn(2, group, size), torch.randn(1, 2, tokens, size).bfloat16()
    cache, table = in_blocks(keys, [0], [tokens], block_size=block_size, layout=layout)
    found = kernels.exact_scores(query, cache, 0, tokens, block_table=table, impl="native")
    assert torch.equal(found, kernels.exact_scores(query, keys[0], 0, tokens, impl="native"))


@pytest.mark.parametrize("bad", [-1, 9])
def test_exact_scores_of_blocks_that_are_none_are_refused(impl, bad):
    table = torch.tensor([[3, bad, 1]])
    kernels.exact_scores(torch.ones(2, 1, 8), torch.ones(9, 4, 2, 8), 0, 4, block_table=table, impl=impl)
    with pytest.raises(ValueError, match="a slot is outside the cache"):
        kernels.exact_scores(torch.ones(2, 1, 8), torch.ones(9, 4, 2, 8), 0, 5, block_table=table, impl=impl)


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
    table = torch.zeros(1, 2, dtype=torch.int32)
    with pytest.raises(ValueError, match="do not fit query"):
        kernels.exact_scores(torch.zeros(1, 1, 8), torch.zeros(9, 4, 2, 8), 0, 1, block_table=table)
    with pytest.raises(ValueError, match=r"0\.\.9 lie outside 0\.\.8"):
        kernels.exact_scores(torch.zeros(2, 1, 8), torch.zeros(9, 4, 2, 8), 0, 9, block_table=table)
    with pytest.raises(ValueError, match="do not fit weight"):
        kernels.matvec_skip_rows(torch.zeros(2, 3), torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="does not fit weight_t"):
        kernels.matvec_skip_columns(torch.zeros(2, 3), torch.zeros(3))
