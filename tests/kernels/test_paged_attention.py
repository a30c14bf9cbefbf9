"""Attention over a paged cache equals attention over the same tokens in one piece."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from keyhole import kernels
from tests.kernels.cases import LAYOUTS, in_blocks
from tests.kernels.test_gather_attention import DTYPES

REQUESTS, HEADS, GROUP, SIZE = 3, 2, 4, 24


def paged(dtype: torch.dtype, block_size: int = 16, width: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """keys, values [blocks, block size, H, D] and block table [B, width]; blocks nobody owns are NaN."""
    blocks = REQUESTS * width + 5
    table = torch.randperm(blocks)[: REQUESTS * width].view(REQUESTS, width).int()
    cache = torch.full((2, blocks, block_size, HEADS, SIZE), math.nan)
    cache[:, table.long().flatten()] = torch.randn(2, REQUESTS * width, block_size, HEADS, SIZE)
    keys, values = cache.to(dtype)
    return keys, values, table


def in_one_piece(source: Tensor, table: Tensor) -> Tensor:
    """[R, slots, ...] of a paged tensor [blocks, block size, H, ...]."""
    return source[table.long()].flatten(1, 2).transpose(1, 2).flatten(0, 1)


def selection(capacity: int) -> tuple[Tensor, Tensor]:
    rows = REQUESTS * HEADS
    slots = torch.stack([torch.randperm(capacity)[:60] for _ in range(rows)])
    counts = torch.tensor([60, 0, 1, 33, 60, 59])
    slots[counts[:, None] <= torch.arange(60)] = 1 << 30
    return slots, counts


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", [16, 13])
def test_equals_one_piece(any_impl, dtype, block_size):
    keys, values, table = paged(dtype, block_size)
    slots, counts = selection(7 * block_size)
    query = torch.randn(REQUESTS * HEADS, GROUP, SIZE)
    found = kernels.paged_gather_attention(
        query, keys, values, table, slots, counts, scale=0.3, impl=any_impl
    )
    flat = [in_one_piece(source, table) for source in (keys, values)]
    expected = kernels.gather_attention(query, *flat, slots, counts, scale=0.3, impl="reference")
    assert torch.allclose(found.out, expected.out, rtol=1e-5, atol=1e-5)
    assert torch.allclose(found.lse, expected.lse, rtol=1e-5, atol=1e-5)


def test_heads_first_layout(any_impl):
    keys, values, table = paged(torch.float32)
    slots, counts = selection(112)
    query = torch.randn(REQUESTS * HEADS, GROUP, SIZE)
    expected = kernels.paged_gather_attention(query, keys, values, table, slots, counts, scale=0.3)
    turned = [source.transpose(1, 2).contiguous().transpose(1, 2) for source in (keys, values)]
    found = kernels.paged_gather_attention(query, *turned, table, slots, counts, scale=0.3, impl=any_impl)
    assert torch.allclose(found.out, expected.out, rtol=1e-5, atol=1e-5)


def test_int8_with_scales(any_impl):
    keys, values = (torch.randint(-128, 128, (26, 16, HEADS, SIZE), dtype=torch.int8) for _ in range(2))
    scales = [torch.rand(26, 16, HEADS) for _ in range(2)]
    table = torch.randperm(26)[:21].view(3, 7).int()
    slots, counts = selection(112)
    query = torch.randn(REQUESTS * HEADS, GROUP, SIZE)
    options = {"scale": 0.01, "key_scales": scales[0], "value_scales": scales[1]}
    found = kernels.paged_gather_attention(
        query, keys, values, table, slots, counts, **options, impl=any_impl
    )
    flat = [in_one_piece(source, table) for source in (keys, values, *scales)]
    options |= {"key_scales": flat[2], "value_scales": flat[3]}
    expected = kernels.gather_attention(query, *flat[:2], slots, counts, **options, impl="reference")
    assert torch.allclose(found.out, expected.out, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("bad", [-1, 26])
def test_blocks_outside_the_cache_are_refused(impl, bad):
    keys, values, table = paged(torch.float32)
    slots, counts = selection(112)
    table[0, int(slots[0, 0]) // 16] = bad
    query = torch.randn(REQUESTS * HEADS, GROUP, SIZE)
    with pytest.raises(ValueError, match="slot is outside the cache"):
        kernels.paged_gather_attention(query, keys, values, table, slots, counts, scale=0.3, impl=impl)


def test_shapes_are_checked():
    keys, values, table = paged(torch.float32)
    slots, counts = selection(112)
    with pytest.raises(ValueError, match="do not fit query"):
        kernels.paged_gather_attention(torch.ones(5, 4, SIZE), keys, values, table, slots, counts, scale=1.0)
    with pytest.raises(ValueError, match="three, four and two dimensions"):
        kernels.paged_gather_attention(torch.ones(6, SIZE), keys, values, table, slots, counts, scale=1.0)


def everything(lengths, *, group=4, size=24, dtype=torch.float32, seed=0):
    """query [R, G, D], keys and values [B, 2, N, D] of requests of so many tokens, sink logits [R, G]."""
    make = torch.Generator().manual_seed(seed)
    rows, tokens = len(lengths) * 2, max(lengths)
    query, sinks = torch.randn(rows, group, size, generator=make), torch.randn(rows, group, generator=make)
    held = torch.randn(2, len(lengths), 2, tokens, size, generator=make).to(dtype)
    return query, *held, sinks


def attend_all(query, keys, values, lengths, blocks, **options):
    """By `paged_attention`, with whatever is not to be read poisoned."""
    begin = [0] * len(lengths)
    (cache, table), (other, _) = (in_blocks(side, begin, lengths, **blocks) for side in (keys, values))
    return kernels.paged_attention(query, cache, other, table, torch.tensor(lengths), **options)


def in_rows(query, keys, values, lengths, **options):
    """The same by `gather_attention` of tokens in one piece."""
    counts = torch.tensor(lengths).repeat_interleave(2)
    slots = torch.arange(keys.shape[2]).expand(len(counts), -1)
    keys, values = keys.flatten(0, 1), values.flatten(0, 1)
    return kernels.gather_attention(query, keys, values, slots, counts, **options, impl="reference")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("block_size", [1, 13, 16, 128])
def test_all_tokens_of_requests_of_different_lengths(any_impl, dtype, layout, block_size):
    lengths = [16, 0, 129, 1, 15, 33, 128]
    *tensors, sinks = everything(lengths, dtype=dtype)
    options = {"scale": 0.3, "softcap": 2.0, "sink_logits": sinks}
    blocks = {"block_size": block_size, "layout": layout}
    found = attend_all(*tensors, lengths, blocks, **options, impl=any_impl)
    expected = in_rows(*tensors, lengths, **options)
    torch.testing.assert_close(found.out, expected.out, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.lse, expected.lse, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("level")
@settings(max_examples=30)
@given(
    st.lists(st.integers(0, 400), min_size=1, max_size=5), st.integers(1, 8), st.integers(32, 256),
    st.integers(1, 140), st.sampled_from(LAYOUTS), st.integers(0, 99),
)  # fmt: skip
def test_any_requests(lengths, group, size, block_size, layout, seed):
    *tensors, _ = everything(lengths, group=group, size=size, dtype=torch.bfloat16, seed=seed)
    blocks = {"block_size": block_size, "layout": layout, "seed": seed}
    found = attend_all(*tensors, lengths, blocks, scale=size**-0.5, impl="native")
    expected = in_rows(*tensors, lengths, scale=size**-0.5)
    torch.testing.assert_close(found.out, expected.out, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.lse, expected.lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [-1, 9])
def test_all_tokens_in_blocks_that_are_none_are_refused(impl, bad):
    cache, table = torch.ones(9, 4, 2, 8), torch.tensor([[3, bad, 1]])
    kernels.paged_attention(torch.ones(2, 1, 8), cache, cache, table, torch.tensor([4]), scale=1.0, impl=impl)
    with pytest.raises(ValueError, match="a slot is outside the cache"):
        kernels.paged_attention(
            torch.ones(2, 1, 8), cache, cache, table, torch.tensor([5]), scale=1.0, impl=impl
        )


def test_lengths_are_checked():
    query, cache, table = torch.ones(4, 1, 8), torch.ones(9, 4, 2, 8), torch.zeros(2, 3, dtype=torch.int32)
    for lengths in ([4, 13], [-1, 4]):
        with pytest.raises(ValueError, match=r"is outside 0\.\.12"):
            kernels.paged_attention(query, cache, cache, table, torch.tensor(lengths), scale=1.0)
    with pytest.raises(ValueError, match="do not fit block_table"):
        kernels.paged_attention(query, cache, cache, table, torch.tensor([4]), scale=1.0)
    cache = cache.to(torch.int8)
    with pytest.raises(ValueError, match="key_scales go with int8"):
        kernels.paged_attention(query, cache, cache, table, torch.tensor([4, 4]), scale=1.0)
