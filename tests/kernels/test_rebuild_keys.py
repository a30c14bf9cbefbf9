"""Keys rebuilt from coefficients, against complex numbers in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keyhole import kernels
from keyhole.core.rope import PlainRope
from keyhole.kernels import RotaryFrequencies
from tests.kernels.cases import strided
from tests.waiting import without_waiting

IMPLS = pytest.mark.parametrize("impl", ["reference", "triton"])
PAIRINGS = pytest.mark.parametrize("adjacent", [False, True])


def case(batch=2, heads=2, tokens=90, slots=30, size=16, rank=20, pairs=8, dtype=torch.float32, seed=0):
    make = torch.Generator().manual_seed(seed)
    coefficients = torch.randn(batch, tokens, rank, generator=make).to(dtype)
    axes = torch.randn(batch, heads, size, rank, generator=make) * rank**-0.5
    mean = torch.randn(batch, heads, size, generator=make)
    chosen = torch.randint(tokens, (batch, heads, slots), generator=make)
    padding = torch.randint(0, 7, (batch,), generator=make)
    return coefficients, axes, mean, chosen, padding, torch.rand(pairs, generator=make)


def by_definition(coefficients, axes, mean, slots, padding, frequencies, adjacent):
    """Each pair of channels is a complex number, multiplied by one of length 1."""
    keys = torch.empty(*slots.shape, axes.shape[2], dtype=torch.float64)
    pairs = len(frequencies)
    for b, h, s in torch.cartesian_prod(*map(torch.arange, slots.shape)).tolist():
        slot = int(slots[b, h, s])
        key = axes[b, h].double() @ coefficients[b, slot].double() + mean[b, h].double()
        # The angle is of float32, as in a model.
        angle = ((slot - padding[b]) * frequencies).double()
        for pair in range(pairs):
            i, j = (2 * pair, 2 * pair + 1) if adjacent else (pair, pair + pairs)
            turned = torch.complex(key[i], key[j]) * torch.polar(torch.ones_like(angle[pair]), angle[pair])
            key[i], key[j] = turned.real, turned.imag
        keys[b, h, s] = key
    return keys


def check(impl, adjacent, **sizes):
    *operands, frequencies = case(**sizes)
    found = kernels.rebuild_keys(*operands, RotaryFrequencies(frequencies, adjacent), impl=impl)
    expected = by_definition(*operands, frequencies, adjacent)
    halves = {torch.float32: 0, torch.float16: 2**-11, torch.bfloat16: 2**-8}[found.dtype]
    # Rounding of the key, and on tensor cores of the axes.
    assert (found - expected).abs().max() <= (3e-6 + 2 * halves) * (1 + expected.abs().max())


@IMPLS
@PAIRINGS
@pytest.mark.parametrize("pairs", [0, 1, 5, 8])
def test_pairs(impl, adjacent, pairs):
    check(impl, adjacent, pairs=pairs)


@IMPLS
@PAIRINGS
@pytest.mark.parametrize(("size", "rank"), [(2, 1), (6, 33), (40, 31), (80, 16)])
def test_sizes(impl, adjacent, size, rank):
    check(impl, adjacent, size=size, rank=rank, pairs=size // 2, slots=5, batch=1)


@IMPLS
@pytest.mark.parametrize("slots", [0, 1, 64, 67])
def test_slots(impl, slots):
    if slots:
        check(impl, False, slots=slots, batch=1)
    else:
        *operands, frequencies = case(slots=0)
        assert kernels.rebuild_keys(*operands, RotaryFrequencies(frequencies, False), impl=impl).shape == (
            2,
            2,
            0,
            16,
        )


@IMPLS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves(impl, dtype):
    check(impl, False, dtype=dtype, slots=9)


@IMPLS
@pytest.mark.parametrize("far", [0, 1_000, 131_071, 1_000_000])
def test_far_positions(impl, far):
    """Position p is slot p less padding, so that a negative padding moves far."""
    coefficients, axes, mean, slots, padding, frequencies = case(batch=1, slots=9)
    operands = coefficients, axes, mean, slots, padding - far
    found = kernels.rebuild_keys(*operands, RotaryFrequencies(frequencies, False), impl=impl)
    torch.testing.assert_close(
        found.double(), by_definition(*operands, frequencies, False), rtol=0, atol=5e-6
    )


@IMPLS
def test_strides_and_slots_that_heads_share(impl):
    coefficients, axes, mean, slots, padding, frequencies = case()
    turning, shared = RotaryFrequencies(frequencies, False), slots[:, :1].expand(-1, 2, -1).int()
    expected = by_definition(coefficients, axes, mean, shared, padding, frequencies, False)
    operands = strided(coefficients), strided(axes.flatten(0, 1)).unflatten(0, (2, 2)), mean
    found = kernels.rebuild_keys(*operands, slots[:, :1].expand(-1, 2, -1), padding, turning, impl=impl)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 20), st.integers(1, 40), st.integers(0, 99))
def test_a_turn_leaves_lengths_and_adds_up(batch, heads, half, tokens, seed):
    make = torch.Generator().manual_seed(seed)
    vectors = torch.randn(batch, heads, tokens, 2 * half, generator=make)
    turning = RotaryFrequencies(torch.rand(half, generator=make), bool(seed % 2))
    here, there = torch.randint(-50, 50, (2, batch, heads, tokens), generator=make)
    moved = kernels.apply_rotary(vectors, here, turning)
    torch.testing.assert_close(moved.norm(dim=-1), vectors.norm(dim=-1))
    both = kernels.apply_rotary(moved, there, turning)
    torch.testing.assert_close(
        both, kernels.apply_rotary(vectors, here + there, turning), rtol=1e-4, atol=1e-4
    )


def test_the_plain_rotation_is_that_of_the_source():
    vectors, positions = torch.randn(2, 3, 5, 8), torch.tensor([[0, 1, 2, 50, 900]])
    pair = torch.complex(*vectors.double().split(4, dim=-1))
    angle = positions[0, :, None] * 10_000.0 ** (-torch.arange(4) / 4).double()
    expected = pair * torch.polar(torch.ones_like(angle), angle)
    found = PlainRope().rotate(vectors, positions)
    torch.testing.assert_close(
        found.double(), torch.cat([expected.real, expected.imag], -1), rtol=0, atol=1e-3
    )


def test_slots_outside_are_not_read():
    *operands, frequencies = case(batch=1)
    coefficients, axes, mean, slots, padding = operands
    whole = torch.full((1, 200, 20), torch.nan)
    whole[:, 50:140] = coefficients
    slots[0, 0, :3] = torch.tensor([-1, 90, 1 << 40])
    operands = whole[:, 50:140], axes, mean, slots, padding, RotaryFrequencies(frequencies, False)
    found = kernels.rebuild_keys(*operands, impl="triton")
    assert found.isfinite().all()
    slots[0, 0, :3] = 0
    expected = kernels.rebuild_keys(*operands, impl="reference")
    torch.testing.assert_close(found[0, 0, 3:], expected[0, 0, 3:], rtol=1e-5, atol=1e-5)


def test_nothing_waits(monkeypatch):
    *operands, frequencies = case(batch=1, slots=5)
    with without_waiting(monkeypatch):
        for impl in ("reference", "triton"):
            kernels.rebuild_keys(*operands, RotaryFrequencies(frequencies, False), impl=impl)


def test_shapes_are_checked():
    coefficients, axes, mean, slots, padding, frequencies = case()
    turning = RotaryFrequencies(frequencies, False)
    for wrong in (
        (coefficients[:1], axes, mean, slots, padding, turning),
        (coefficients[..., 1:], axes, mean, slots, padding, turning),
        (coefficients, axes, mean[..., 1:], slots, padding, turning),
        (coefficients, axes, mean, slots[:, 1:], padding, turning),
        (coefficients, axes, mean, slots, padding[1:], turning),
        (coefficients, axes, mean, slots, padding, RotaryFrequencies(torch.ones(9), False)),
    ):
        with pytest.raises(ValueError, match="do not fit coefficients"):
            kernels.rebuild_keys(*wrong)


def test_odd_head_sizes_have_no_kernel():
    *operands, frequencies = case(size=17)
    with pytest.raises(RuntimeError, match="no kernel"):
        kernels.rebuild_keys(*operands, RotaryFrequencies(frequencies, False), impl="triton")
