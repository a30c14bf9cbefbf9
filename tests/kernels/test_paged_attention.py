"""Attention over a paged cache equals attention over the same tokens in one piece."""

import math

import pytest
import torch
from torch import Tensor

from keyhole import kernels
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
