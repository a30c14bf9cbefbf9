"""Exact attention over selected slots."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from keyhole import kernels
from tests.kernels.cases import strided

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def by_definition(query, keys, values, slots, counts, *, scale, softcap=None, sink_logits=None):
    """Output and log-sum-exp in float64, row by row."""
    outs, lses = [], []
    for row, count in enumerate(counts.tolist()):
        at = slots[row, :count].long()
        logits = query[row].double() @ keys[row, at].double().T * scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        sink = torch.full((len(logits), 1), -math.inf) if sink_logits is None else sink_logits[row, :, None]
        lse = torch.cat([logits, sink.double()], 1).logsumexp(1)
        weights = (logits - lse.masked_fill(lse == -math.inf, 0)[:, None]).exp()
        outs.append(weights @ values[row, at].double())
        lses.append(lse)
    return torch.stack(outs), torch.stack(lses)


def assert_close(
    found: kernels.Attended, expected: tuple[Tensor, Tensor], values: Tensor, bound: float = 3e-6
):
    """Within a bound that scales with the largest value read and with the size of the logits."""
    out, lse = expected
    size = float(values.double().nan_to_num().abs().max()) if values.numel() else 0.0
    reach = 1 + float(lse.masked_fill(lse.isinf(), 0).abs().max())
    rounding = {torch.float32: 0, torch.bfloat16: 2**-8, torch.float16: 2**-11}[found.out.dtype]
    assert found.out.isfinite().all()
    assert (found.out.double() - out).abs().max() <= (bound * reach + rounding) * size
    finite = lse.isfinite()
    assert torch.equal(found.lse.isfinite(), finite)
    assert (found.lse.double() - lse)[finite].abs().max().item() <= bound * reach if finite.any() else True


def case(rows=2, heads=4, capacity=300, size=64, width=100, dtype=torch.float32, seed=0):
    """Operands whose unselected slots are NaN."""
    make = torch.Generator().manual_seed(seed)
    query = torch.randn(rows, heads, size, generator=make)
    keys, values = (torch.randn(rows, capacity, size, generator=make).to(dtype) for _ in range(2))
    slots = torch.stack([torch.randperm(capacity, generator=make)[:width] for _ in range(rows)])
    unread = torch.ones(rows, capacity, dtype=torch.bool).scatter_(1, slots, False)
    keys[unread], values[unread] = math.nan, math.nan
    return query, keys, values, slots, torch.full((rows,), slots.shape[1])


def shorter(impl: str, size: int, most: int = 150) -> int:
    """The size, less where Triton's interpreter would take long, or has no kernel."""
    return min(size, most) if impl == "triton" else size


@pytest.mark.parametrize("width", [1, 31, 32, 33, 63, 64, 65, 100, 2000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sizes(any_impl, width, dtype):
    width = shorter(any_impl, width)
    operands = case(capacity=2100, width=width, dtype=dtype)
    found = kernels.gather_attention(*operands, scale=0.125, impl=any_impl)
    assert_close(found, by_definition(*operands, scale=0.125), operands[2])


@pytest.mark.parametrize("size", [1, 3, 8, 17, 64, 80, 96, 100, 128, 131, 192, 256])
def test_head_sizes(any_impl, size):
    operands = case(size=size)
    assert_close(
        kernels.gather_attention(*operands, scale=0.3, impl=any_impl),
        by_definition(*operands, scale=0.3),
        operands[2],
    )


@pytest.mark.parametrize("rows", [1, 2, 3, 9])
@pytest.mark.parametrize("heads", [1, 2, 3, 5, 8, 64])
def test_rows_and_heads(any_impl, rows, heads):
    rows, heads, width = shorter(any_impl, rows, 3), shorter(any_impl, heads, 16), shorter(any_impl, 700, 70)
    operands = case(rows=rows, heads=heads, capacity=900, width=width)
    assert_close(
        kernels.gather_attention(*operands, scale=0.2, impl=any_impl),
        by_definition(*operands, scale=0.2),
        operands[2],
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_and_odd_addresses(any_impl, dtype):
    query, keys, values, slots, counts = case(dtype=dtype)
    wide = torch.full((2, 200), -1, dtype=torch.int32)
    wide[:, 3:103] = slots
    counts = torch.tensor([99, 1])
    operands = (
        query.transpose(0, 1).contiguous().transpose(0, 1),
        strided(keys),
        strided(values),
        wide[:, 3:103],
    )
    found = kernels.gather_attention(*operands, counts, scale=0.2, impl=any_impl)
    assert_close(found, by_definition(*operands, counts, scale=0.2), values)


def test_entries_beyond_the_count_are_ignored(any_impl):
    query, keys, values, slots, _ = case()
    counts = torch.tensor([5, 0])
    poisoned = slots.clone()
    poisoned[0, 5:], poisoned[1] = -7, 1 << 30
    found = kernels.gather_attention(query, keys, values, poisoned, counts, scale=0.2, impl=any_impl)
    assert_close(found, by_definition(query, keys, values, slots, counts, scale=0.2), values)
    assert not found.out[1].any()
    assert found.lse[1].tolist() == [-math.inf] * 4


@pytest.mark.parametrize("width", [0, 10])
def test_nothing_selected(any_impl, width):
    query, keys, values, slots, _ = case()
    counts = torch.zeros(2, dtype=torch.int32)
    found = kernels.gather_attention(query, keys, values, slots[:, :width], counts, scale=1.0, impl=any_impl)
    assert not found.out.any()
    assert (found.lse == -math.inf).all()


def test_softcap_and_sinks(any_impl):
    operands = case()
    sinks = torch.tensor([[0.0, 3.0, -math.inf, 50.0]] * 2)
    options = {"scale": 2.0, "softcap": 10.0, "sink_logits": sinks}
    found = kernels.gather_attention(*operands, **options, impl=any_impl)
    assert_close(found, by_definition(*operands, **options), operands[2])
    nothing = kernels.gather_attention(*operands[:4], torch.zeros(2).int(), **options, impl=any_impl)
    assert torch.equal(nothing.lse, sinks)


@pytest.mark.parametrize("scale", [0.0, 30.0])
def test_extreme_logits(any_impl, scale):
    operands = case(width=200)
    assert_close(
        kernels.gather_attention(*operands, scale=scale, impl=any_impl),
        by_definition(*operands, scale=scale),
        operands[2],
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_output_has_the_dtype_of_the_query(any_impl, dtype):
    query, *rest = case(dtype=dtype)
    found = kernels.gather_attention(query.to(dtype), *rest, scale=0.2, impl=any_impl)
    assert found.out.dtype == dtype
    assert_close(found, by_definition(query.to(dtype), *rest, scale=0.2), rest[1])


def test_int8_with_scales(any_impl):
    query, _, _, slots, counts = case(size=96)
    keys, values = (torch.randint(-128, 128, (2, 300, 96), dtype=torch.int8) for _ in range(2))
    scales = [torch.rand(2, 300) * 0.02 for _ in range(2)]
    found = kernels.gather_attention(
        query,
        keys,
        values,
        slots,
        counts,
        scale=0.2,
        key_scales=scales[0],
        value_scales=scales[1],
        impl=any_impl,
    )
    real = [source.double() * scale[..., None] for source, scale in zip((keys, values), scales, strict=True)]
    assert_close(found, by_definition(query, *real, slots, counts, scale=0.2), real[1])


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("rows", [1, 3, 9])
@pytest.mark.parametrize("dtype", DTYPES)
def test_logits_of_what_is_read(any_impl, dtype, rows, softcap):
    """In the order of the slots, without those of sinks; -inf where nothing is read."""
    rows, width = shorter(any_impl, rows, 3), shorter(any_impl, 515, 70)
    query, keys, values, slots, _ = case(rows=rows, heads=5, capacity=700, size=40, width=width, dtype=dtype)
    counts = torch.tensor([515, 0, 17, 1, 16, 130, 514, 33, 258])[:rows].clamp(max=width)
    sinks = torch.randn(rows, 5)
    options = {"scale": 0.3, "softcap": softcap, "sink_logits": sinks, "impl": any_impl}
    found = kernels.gather_attention(query, keys, values, slots, counts, with_logits=True, **options)
    plain = kernels.gather_attention(query, keys, values, slots, counts, **options)
    assert plain.logits is None
    assert torch.equal(plain.out, found.out)
    assert torch.equal(plain.lse, found.lse)
    for row, count in enumerate(counts.tolist()):
        products = query[row].double() @ keys[row, slots[row, :count].long()].double().T * 0.3
        products = products if softcap is None else softcap * (products / softcap).tanh()
        torch.testing.assert_close(found.logits[row, :, :count].double(), products, rtol=1e-5, atol=1e-5)
        assert (found.logits[row, :, count:] == -math.inf).all()


@given(
    rows=st.integers(1, 4),
    heads=st.integers(1, 9),
    size=st.integers(1, 140),
    width=st.integers(0, 200),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_any_case(rows, heads, size, width, dtype, seed):
    query, keys, values, slots, _ = case(rows, heads, 250, size, width, dtype, seed)
    counts = torch.randint(0, width + 1, (rows,), generator=torch.Generator().manual_seed(seed))
    found = kernels.gather_attention(query, keys, values, slots, counts, scale=size**-0.5)
    assert_close(found, by_definition(query, keys, values, slots, counts, scale=size**-0.5), values)


@pytest.mark.parametrize("bad", [-1, 300])
def test_slots_outside_the_cache_are_refused(impl, bad):
    query, keys, values, slots, counts = case()
    slots[1, 99] = bad
    with pytest.raises(ValueError, match="slot is outside"):
        kernels.gather_attention(query, keys, values, slots, counts, scale=1.0, impl=impl)


@pytest.mark.parametrize("bad", [-1, 101])
def test_counts_outside_the_width_are_refused(impl, bad):
    query, keys, values, slots, counts = case()
    counts[1] = bad
    with pytest.raises(ValueError, match="count is outside"):
        kernels.gather_attention(query, keys, values, slots, counts, scale=1.0, impl=impl)


def test_shapes_are_checked():
    query, keys, values, slots, counts = case()
    with pytest.raises(ValueError, match="do not fit query"):
        kernels.gather_attention(query, keys[:, :, 1:], values, slots, counts, scale=1.0)
    with pytest.raises(ValueError, match="do not fit 2 rows"):
        kernels.gather_attention(query, keys, values, slots[:1], counts, scale=1.0)
    with pytest.raises(TypeError, match="float32"):
        kernels.gather_attention(query, keys, values, slots.float(), counts, scale=1.0)
    with pytest.raises(ValueError, match="key_scales go with int8"):
        kernels.gather_attention(query, keys, values, slots, counts, scale=1.0, key_scales=torch.ones(2, 300))
