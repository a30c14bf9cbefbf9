"""Look-up tables of a query, packed so that one look-up serves several query heads.

Shapes: R rows, G query heads of a KV head, M sub-spaces, C centroids, W words that hold the heads.

The entries are those of `keyhole.kernels.pq.tables`, computed in float64 as well, which costs little: tables
are small. With 4-bit codes an entry fits into a byte, and a word of 32 bits holds four heads: 0 and 1 in its
even bytes, 2 and 3 in its odd ones. Otherwise a word holds two heads. Either way all sums fit into 16 bits.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from keyhole.kernels.pq.tables import largest_entry

_ENTRIES = 2048  # that a program holds at a time


class Packed(NamedTuple):
    words: Tensor  # int32 [R, W, S, C]; S is M, with 4-bit codes the next even number, beyond M zeros
    base: Tensor  # float32 [R, W * heads of a word]: logit of a zero sum
    step: Tensor  # float32 [R, W * heads of a word]: logit of one unit


def heads_of_word(centroids: int) -> int:
    return 4 if centroids == 16 else 2


def packed_tables(query: Tensor, codebooks: Tensor, scale: float) -> Packed:
    """Tables of query [R, G, D] for codebooks [R, M, C, D / M]."""
    rows, heads, _ = query.shape
    _, subspaces, centroids, width = codebooks.shape
    together = heads_of_word(centroids)
    stored = subspaces + subspaces % 2 if centroids == 16 else subspaces
    words = triton.cdiv(heads, together)
    device = query.device
    packed = Packed(
        torch.empty(rows, words, stored, centroids, dtype=torch.int32, device=device),
        torch.empty(rows, words * together, dtype=torch.float32, device=device),
        torch.empty(rows, words * together, dtype=torch.float32, device=device),
    )
    block = max(1, min(triton.next_power_of_2(stored), _ENTRIES // (together * centroids)))
    _tables[(words, rows)](
        query.contiguous(), codebooks.contiguous(), *packed, heads, subspaces, stored, width,
        SCALE=scale, TOP=largest_entry(subspaces, centroids.bit_length() - 1),
        HEADS=together, SPACES=block, CENTROIDS=centroids, num_warps=16,
    )  # fmt: skip
    return packed


@triton.jit
def _tables(
    query, codebooks, words, base, step, heads, subspaces: tl.constexpr, stored: tl.constexpr,
    width: tl.constexpr, SCALE: tl.constexpr, TOP: tl.constexpr,
    HEADS: tl.constexpr, SPACES: tl.constexpr, CENTROIDS: tl.constexpr,
):  # fmt: skip
    word, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    inner = tl.arange(0, HEADS)
    head = word * HEADS + inner
    query += row * heads * subspaces * width
    codebooks += row * subspaces * CENTROIDS * width
    lowest, span = tl.zeros([HEADS], tl.float64), tl.zeros([HEADS], tl.float64)
    for begin in range(0, subspaces, SPACES):
        logits = _logits(query, codebooks, head, begin, heads, subspaces, width, SCALE, SPACES, CENTROIDS)
        low = tl.min(logits, 2)
        lowest += tl.sum(low, 1)
        span = tl.maximum(span, tl.max(tl.max(logits, 2) - low, 1))
    unit = tl.where(span > 0, TOP / span, 0.0)
    numbers = row * tl.num_programs(0) * HEADS + head
    tl.store(base + numbers, lowest.to(tl.float32))
    tl.store(step + numbers, (span / TOP).to(tl.float32))
    for begin in range(0, stored, SPACES):
        logits = _logits(query, codebooks, head, begin, heads, subspaces, width, SCALE, SPACES, CENTROIDS)
        entries = tl.floor((logits - tl.min(logits, 2)[:, :, None]) * unit[:, None, None] + 0.5).to(tl.int32)
        # What is not finite must not reach into the bits of another head.
        entries = tl.minimum(tl.maximum(entries, 0), TOP) << (inner % 2 * 16 + inner // 2 * 8)[:, None, None]
        space, centroid = begin + tl.arange(0, SPACES)[:, None], tl.arange(0, CENTROIDS)[None, :]
        places = words + ((row * tl.num_programs(0) + word) * stored + space) * CENTROIDS + centroid
        tl.store(places, tl.sum(entries, 0), mask=space < stored)


@triton.jit
def _logits(
    query, codebooks, head, begin, heads, subspaces, width: tl.constexpr,
    SCALE: tl.constexpr, SPACES: tl.constexpr, CENTROIDS: tl.constexpr,
):  # fmt: skip
    """Products [HEADS, SPACES, CENTROIDS] (float64) of a block of sub-spaces; zeros beyond what there is."""
    space, centroid = begin + tl.arange(0, SPACES), tl.arange(0, CENTROIDS)
    asked = (head < heads)[:, None] & (space < subspaces)[None, :]
    there = (space < subspaces)[:, None] & (centroid < CENTROIDS)[None, :]
    parts = query + (head[:, None] * subspaces + space[None, :]) * width
    entries = codebooks + (space[:, None] * CENTROIDS + centroid[None, :]) * width
    total = tl.zeros([head.shape[0], SPACES, CENTROIDS], tl.float64)
    for channel in range(width):
        part = tl.load(parts + channel, mask=asked, other=0.0).to(tl.float64) * SCALE
        entry = tl.load(entries + channel, mask=there, other=0.0).to(tl.float64)
        total += part[:, :, None] * entry[None, :, :]
    return total
