"""Products of dense and packed weights against float64, at every instruction set."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keyhole.kernels.products.matrix import Packing, dense
from keyhole.kernels.products.multiply import multiply
from keyhole.kernels.products.packing import pack_blocks, quantise
from keyhole.kernels.products.unpacking import unpack_rows
from tests.oracles_packed import bound, decoded, float_bound, random_blocks

PACKED = [Packing.INT8, Packing.INT4, Packing.INT4_MIN]
SHAPES = [(1, 32), (16, 64), (40, 96), (115, 576)]


def packed(packing, rows, columns, seed=0):
    """A packed matrix with its numbers in float64."""
    blocks = random_blocks(packing.name, rows, columns // 32, seed)
    return pack_blocks(packing, torch.from_numpy(blocks)), decoded(packing.name, blocks)


def vectors(count, columns, seed=0):
    x = torch.randn(count, columns, generator=torch.Generator().manual_seed(seed))
    return x * torch.logspace(-3, 3, columns)[torch.randperm(columns)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("packing", PACKED)
def test_blocks_are_taken_over_bit_for_bit(impl, packing, shape):
    matrix, numbers = packed(packing, *shape)
    found = unpack_rows(matrix, range(shape[0]), impl=impl)
    assert torch.equal(found, torch.from_numpy(numbers).float())
    some = torch.randint(shape[0], (7,))
    assert torch.equal(unpack_rows(matrix, some, impl=impl), found[some])
    narrow = unpack_rows(matrix, range(shape[0]), torch.bfloat16, impl=impl)
    assert torch.equal(narrow, found.bfloat16())


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("packing", PACKED)
def test_packed_products_are_within_their_bound(impl, packing, shape, count):
    (matrix, numbers), x = packed(packing, *shape), vectors(count, shape[1])
    (found,) = multiply([matrix], x, impl=impl)
    error = (found.double() - x.double() @ torch.from_numpy(numbers).T).abs().numpy()
    assert (error <= bound(numbers, x.double().numpy())).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (17, 33), (33, 100), (128, 576)])
def test_dense_products(impl, shape, dtype):
    weight, x = torch.randn(shape).to(dtype), torch.randn(5, shape[1])
    (found,) = multiply([dense(weight)], x, impl=impl)
    expected = x.double() @ weight.double().T
    error = (found.double() - expected).abs().numpy()
    inside = x if impl == "native" else x.to(dtype)
    slack = 0 if impl == "native" else (inside.double() @ weight.double().T - expected).abs().numpy()
    assert (error <= float_bound(weight.double().numpy(), x.double().numpy(), shape[1]) + slack).all()


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("packing", list(Packing))
def test_a_product_is_the_same_alone_in_company_and_on_any_number_of_threads(packing):
    if packing.packed:
        matrix, other = packed(packing, 83, 96)[0], packed(packing, 21, 96, seed=1)[0]
    else:
        dtype = torch.float32 if packing is Packing.FLOAT32 else torch.bfloat16
        matrix, other = dense(torch.randn(83, 96).to(dtype)), dense(torch.randn(21, 96).to(dtype))
    x, before = vectors(13, 96), torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            together, others = multiply([matrix, other], x, impl="native")
            for i in (0, 6, 12):
                assert torch.equal(multiply([matrix], x[i : i + 1], impl="native")[0][0], together[i])
                assert torch.equal(multiply([other], x[i : i + 1], impl="native")[0][0], others[i])
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("level")
@given(st.integers(1, 50), st.integers(1, 200), st.integers(1, 16), st.sampled_from(PACKED[::2]))
def test_quantised_numbers_of_any_shape(rows, columns, count, packing):
    weight, bias = torch.randn(rows, columns), torch.randn(rows)
    matrix = quantise(weight, packing, bias)
    near = unpack_rows(matrix, range(rows)).double()
    assert torch.equal(unpack_rows(matrix, range(rows), impl="reference").double(), near)
    levels = 127 if packing is Packing.INT8 else 7.5
    assert float((near - weight).abs().max()) <= float(weight.abs().max()) * (0.5 / levels + 2**-9)
    x = vectors(count, columns)
    (found,) = multiply([matrix], x, impl="native")
    error = (found.double() - x.double() @ near.T - bias).abs().numpy()
    rounding = 1e-6 * bias.abs().numpy()
    assert (error <= bound(near.numpy(), x.double().numpy()) + rounding).all()


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_not_hidden(packing, bad):
    (matrix, _), x = packed(packing, 20, 64), torch.ones(2, 64)
    x[1, 40] = bad
    (found,) = multiply([matrix], x, impl="native")
    assert found[0].isfinite().all()
    assert found[1].isnan().all()


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("packing", PACKED)
def test_the_largest_codes_do_not_overflow(packing):
    blocks = random_blocks(packing.name, 16, 3)
    head = 2 * {"INT4_MIN": 2}.get(packing.name, 1)
    blocks[..., head:] = 128 if packing is Packing.INT8 else 255
    matrix, numbers = pack_blocks(packing, torch.from_numpy(blocks)), decoded(packing.name, blocks)
    for x in (torch.full((1, 96), 3.0), torch.full((1, 96), -3.0)):
        (found,) = multiply([matrix], x, impl="native")
        # These vectors are exact in int8.
        np.testing.assert_allclose(found.numpy(), x.double().numpy() @ numbers.T, rtol=1e-5, atol=1e-2)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-37, 1e-30])
def test_small_vectors(size):
    (matrix, numbers), x = packed(Packing.INT4, 16, 64), torch.full((1, 64), size)
    (found,) = multiply([matrix], x, impl="native")
    expected = x.double().numpy() @ numbers.T
    assert (np.abs(found.double().numpy() - expected) <= bound(numbers, x.double().numpy())).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packing", PACKED)
def test_many_vectors_are_multiplied_in_pieces(monkeypatch, packing, dtype):
    monkeypatch.setattr("keyhole.kernels.products.multiply._PIECE", 1000)
    (matrix, numbers), x = packed(packing, 75, 96), torch.randn(20, 96).to(dtype)
    (found,) = multiply([matrix], x)
    expected = x.double() @ torch.from_numpy(numbers).T
    assert found.dtype == dtype
    size = (x.double().abs() @ torch.from_numpy(numbers).abs().T).max()
    error = float((found.double() - expected).abs().max() / size)
    assert error < (2**-7 if dtype == torch.bfloat16 else 1e-6)


def test_what_does_not_fit_is_refused():
    matrix, _ = packed(Packing.INT4, 16, 64)
    with pytest.raises(ValueError, match=r"x \[1, 63\] does not fit matrices \[\[16, 64\]\]"):
        multiply([matrix], torch.ones(1, 63))
    with pytest.raises(ValueError, match=r"blocks of INT4 are uint8 \[M, G, 18\]"):
        pack_blocks(Packing.INT4, torch.zeros(4, 2, 20, dtype=torch.uint8))
    with pytest.raises(ValueError, match="a dense matrix is float32 or bfloat16"):
        dense(torch.ones(4, 4).half())
    with pytest.raises(ValueError, match="not finite, or beyond 65504"):
        quantise(torch.full((2, 32), float("nan")), Packing.INT8)
    with pytest.raises(ValueError, match="a slot is outside"):
        unpack_rows(matrix, torch.tensor([16]), impl="native")
