"""Exact attention over slots that are held as codes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole import kernels
from tests.kernels.test_gather_attention import assert_close, by_definition, shorter


def numbers(side, bits, size):
    """What codes stand for, code by code: float64 [R, n * g, size]; ranges by channel or by token."""
    codes = side.codes.flatten(0, 1)
    rows, groups, tokens, _ = codes.shape
    scale, low = (part.flatten(0, 1).double() for part in (side.scale, side.low))
    out = torch.zeros(rows, groups, tokens, size, dtype=torch.float64)
    by_channel = side.by_channel
    for d in range(size):
        code = sum(
            (codes[..., bit // 8] >> bit % 8 & 1).int() << i
            for i, bit in enumerate(range(d * bits, d * bits + bits))
        )
        at = (slice(None), slice(None), d, None) if by_channel else slice(None)
        out[..., d] = low[at] + scale[at] * code.double()
    return out.flatten(1, 2)


class Side(kernels.Codes):
    by_channel = False


class ByChannel(Side):
    by_channel = True


def make_side(kind, shape, ranges, width, make):
    """Codes and ranges inside rows of bytes, as a storage holds them, with poison around."""
    batch, heads, groups, group = shape
    sizes = [group * width, -group * width % 4, 4 * ranges, 4 * ranges]
    rows = torch.full((batch, heads, groups + 2, sum(sizes) + 12), 255, dtype=torch.uint8)
    codes, _, scale, low = rows[:, :, 1 : groups + 1, 8:-4].split(sizes, dim=-1)
    codes, scale, low = codes.unflatten(-1, (group, -1)), scale.view(torch.float), low.view(torch.float)
    codes.copy_(torch.randint(256, codes.shape, generator=make))
    scale.copy_(torch.rand(scale.shape, generator=make) * 0.02)
    low.copy_(torch.randn(low.shape, generator=make))
    return kind(codes, scale, low)


def case(bits, *, batch=1, heads=2, group=3, groups=5, tokens=64, sizes=(64, 64), width=100, seed=0):
    make = torch.Generator().manual_seed(seed)
    shape = (batch, heads, groups, tokens)
    widths = [-(-size * bits // 8) for size in sizes]
    keys = make_side(ByChannel, shape, sizes[0], widths[0], make)
    values = make_side(Side, shape, tokens, widths[1], make)
    query = torch.randn(batch * heads, group, sizes[0], generator=make)
    width = min(width, groups * tokens)
    slots = torch.stack([torch.randperm(groups * tokens, generator=make)[:width] for _ in query])
    return query, keys, values, kernels.Layout(bits, *sizes), slots, torch.full((len(query),), width)


def check(impl, bits, *, scale=0.2, softcap=None, counts=None, **sizes):
    query, keys, values, layout, slots, full = case(bits, **sizes)
    counts = full if counts is None else counts
    found = kernels.packed_attention(
        query, keys, values, layout, slots, counts, scale=scale, softcap=softcap, impl=impl
    )
    real = [numbers(side, bits, size) for side, size in zip((keys, values), layout[1:], strict=True)]
    assert_close(found, by_definition(query, *real, slots, counts, scale=scale, softcap=softcap), real[1])


every_precision = pytest.mark.parametrize("bits", [8, 4, 3, 2])


@every_precision
@pytest.mark.parametrize("width", [0, 1, 15, 16, 17, 31, 33, 100, 320])
def test_widths(any_impl, bits, width):
    check(any_impl, bits, width=width)


@every_precision
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8, 15, 17, 64, 100, 128, 131])
def test_head_sizes(any_impl, bits, size):
    check(any_impl, bits, sizes=(size, size), tokens=4)


@every_precision
@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_rows_and_heads(any_impl, bits, group, batch):
    batch, width = shorter(any_impl, batch, 2), shorter(any_impl, 300, 40)
    check(any_impl, bits, group=group, batch=batch, width=width)


@every_precision
@pytest.mark.parametrize("tokens", [1, 3, 64])
def test_groups_of_any_size(any_impl, bits, tokens):
    check(any_impl, bits, tokens=tokens, groups=70, width=65)


@every_precision
def test_sizes_that_differ_have_no_native_code(bits):
    check("auto", bits, sizes=(7, 12), tokens=4)
    query, *rest = case(bits, sizes=(7, 12), tokens=4)
    with pytest.raises(RuntimeError, match="no native code"):
        kernels.packed_attention(query, *rest, scale=1.0, impl="native")


@every_precision
def test_softcap(any_impl, bits):
    check(any_impl, bits, scale=1.0, softcap=3.0)


@every_precision
def test_counts(any_impl, bits):
    check(any_impl, bits, counts=torch.tensor([7, 0]))


@every_precision
def test_entries_beyond_the_count_are_ignored(any_impl, bits):
    query, keys, values, layout, slots, counts = case(bits)
    expected = kernels.packed_attention(
        query, keys, values, layout, slots, counts - 60, scale=0.3, impl=any_impl
    )
    slots[:, 40:] = -7
    found = kernels.packed_attention(
        query, keys, values, layout, slots, counts - 60, scale=0.3, impl=any_impl
    )
    assert torch.equal(found.out, expected.out)


@settings(max_examples=40)
@given(
    st.sampled_from([4, 8]), st.integers(1, 3), st.integers(1, 3), st.integers(1, 6), st.integers(1, 5),
    st.integers(1, 40), st.integers(1, 70), st.integers(0, 99),
)  # fmt: skip
def test_any_case(bits, batch, heads, group, groups, tokens, size, seed):
    sizes = {"batch": batch, "heads": heads, "group": group, "groups": groups, "sizes": (size, size)}
    check("auto", bits, **sizes, tokens=tokens, seed=seed, scale=size**-0.5)


@every_precision
@pytest.mark.parametrize("bad", [-1, 320, 1 << 30])
def test_slots_outside_are_refused(impl, bits, bad):
    query, keys, values, layout, slots, counts = case(bits)
    slots[1, 99] = bad
    with pytest.raises(ValueError, match="slot is outside"):
        kernels.packed_attention(query, keys, values, layout, slots, counts, scale=1.0, impl=impl)


def test_no_group_yet(any_impl):
    query, keys, values, layout, slots, counts = case(8)
    none = [kernels.Codes(*(part[:, :, :0] for part in side)) for side in (keys, values)]
    found = kernels.packed_attention(query, *none, layout, slots, counts * 0, scale=1.0, impl=any_impl)
    assert not found.out.any()
    assert (found.lse == -torch.inf).all()


def test_shapes_are_checked():
    query, keys, values, layout, slots, counts = case(8)
    for wrong in (layout._replace(bits=4), layout._replace(keys=63), layout._replace(values=65)):
        with pytest.raises(ValueError, match="do not fit query"):
            kernels.packed_attention(query, keys, values, wrong, slots, counts, scale=1.0)
    with pytest.raises(ValueError, match="do not fit query"):
        kernels.packed_attention(query[..., 1:], keys, values, layout, slots, counts, scale=1.0)
    with pytest.raises(ValueError, match="do not fit 2 rows"):
        kernels.packed_attention(query, keys, values, layout, slots[:1], counts, scale=1.0)
