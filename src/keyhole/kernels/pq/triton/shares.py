"""Shares of attention mass of all slots of a range, from sums of table entries.

Two passes, because a share needs the log-sum-exp of each head. The first leaves sums of 16 bits, and for
each tile and head the largest logit and the sum of exponentials below it. The second leaves a float32 share
for each slot, and counts for each chunk how many fall into each of 256 bins, quarters of an octave from 1
downwards.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from keyhole.kernels.backend.triton import bound, capped, padded
from keyhole.kernels.pq.triton.scan import (
    SLOTS,
    head_sums,
    lane_of_slot,
    slot_of_lane,
    tile_lanes,
    tiles_of,
)
from keyhole.kernels.pq.triton.tables import heads_of_word, packed_tables
from keyhole.kernels.pq.types import BLOCK

BINS = 256
UNIT = 1 << 40  # a share of 1 as an integer, so that adding shares knows no order
_CHUNKS = 32  # of a row, at most: each chunk's program reads the counts of all of them
TILE = 4096  # slots whose shares a program of 256 threads holds at a time; a chunk has no fewer
WARPS = 8
_PARTS = 256  # tiles of which it takes the log-sum-exp at a time


class Range(NamedTuple):
    first: Tensor  # integers [R], on the device
    last: Tensor  # integers [R]
    span: int  # no row ends behind this slot

    @property
    def chunk(self) -> int:
        """Slots of a chunk: a power of two."""
        return max(TILE, triton.next_power_of_2(triton.cdiv(self.span, _CHUNKS)))

    @property
    def chunks(self) -> int:
        return triton.cdiv(self.span, self.chunk)


class Shares(NamedTuple):
    share: Tensor  # float32 [R, span], without meaning outside the row's range
    anchor: Tensor  # float32 [R]
    counts: Tensor  # int32 [R, chunks, BINS]
    held: Tensor  # int64 [R, BINS]: sum of the shares in a bin, of which UNIT makes 1; empty unless asked for


def shares(
    query: Tensor, codebooks: Tensor, buffer: Tensor, within: Range, scale: float, softcap: float | None,
    anchor_lse: Tensor, *, weigh: bool,
) -> Shares:  # fmt: skip
    """Shares for query [R, G, D]; with `weigh` the bins' sums of shares too. The span is not 0."""
    rows, heads, _ = query.shape
    centroids, device = codebooks.shape[2], query.device
    tables = packed_tables(query, codebooks, scale)
    tiles = tiles_of(within.span)
    sums = torch.empty(rows, heads, tiles * SLOTS, dtype=torch.uint16, device=device)
    parts = torch.empty(2, rows, heads, tiles, dtype=torch.float32, device=device)
    _scan[(tables.words.shape[1], tiles, rows)](
        *tables, buffer, within.first, within.last, sums, *parts, buffer.stride(0), buffer.stride(1),
        buffer.shape[1], buffer.shape[2] // BLOCK, tables.words.shape[2], within.span, heads, softcap,
        HEADS=heads_of_word(centroids), CENTROIDS=centroids, SLOTS=SLOTS,
    )  # fmt: skip
    found = Shares(
        torch.empty(rows, within.span, dtype=torch.float32, device=device),
        torch.empty(rows, dtype=torch.float32, device=device),
        torch.empty(rows, within.chunks, BINS, dtype=torch.int32, device=device),
        torch.zeros(rows, BINS if weigh else 0, dtype=torch.int64, device=device),
    )
    _shares[(within.chunks, rows)](
        sums, tables.base, tables.step, *parts, anchor_lse.float().contiguous(), within.first, within.last,
        *found, tables.base.shape[1], within.span, tiles, heads, softcap, NIBBLES=centroids == 16,
        WEIGH=weigh, UNIT=UNIT, HEADS=padded(heads, 1), PARTS=_PARTS, SLOTS=SLOTS, BINS=BINS,
        TILE=TILE, CHUNK=within.chunk, num_warps=WARPS,
    )  # fmt: skip
    return found


@triton.jit
def bounds(first, last, row, span):
    """The range of a row, within the slots that there are."""
    start = tl.maximum(tl.load(first + row).to(tl.int32), 0)
    return start, tl.minimum(tl.load(last + row).to(tl.int32), span)


@triton.jit
def bin_of(share):
    """The highest shares come first; 508 are the upper bits of 1. Shares below 2^-64 are in the last bin."""
    bits = share.to(tl.int32, bitcast=True) >> 21
    return tl.minimum(tl.maximum(508 - bits, 0), 255)


@triton.jit
def _scan(
    words, base, step, codes, first, last, sums, peaks, totals, row_stride, block_stride, blocks,
    code_rows: tl.constexpr, stored, span, heads, softcap,
    HEADS: tl.constexpr, CENTROIDS: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    word, tile, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    start, stop = bounds(first, last, row, span)
    inner = tl.arange(0, HEADS)
    head = row * heads + word * HEADS + inner
    real = word * HEADS + inner < heads
    part = head * tl.num_programs(1) + tile
    if (tile * SLOTS < stop) & (tile * SLOTS + SLOTS > start):
        place = row * tl.num_programs(0) + word
        found = head_sums(
            words + place * stored * CENTROIDS, codes + row * row_stride, tile, blocks, block_stride,
            code_rows, CENTROIDS, SLOTS,
        )  # fmt: skip
        lane = tile_lanes(tile, SLOTS)
        kept = sums + head[None, :] * (tl.num_programs(1) * SLOTS) + lane[:, None]
        tl.store(kept, found.to(tl.uint16), mask=real[None, :])
        factors = place * HEADS + inner
        logits = capped(tl.load(base + factors) + tl.load(step + factors) * found.to(tl.float32), softcap)
        slot = slot_of_lane(lane, CENTROIDS == 16)
        logits = tl.where(((slot >= start) & (slot < stop))[:, None], logits, -float("inf"))
        peak = tl.max(logits, 0)
        # A tile in range may have no slot in range: the others of its block are.
        total = tl.sum(tl.exp(logits - tl.where(peak == -float("inf"), 0.0, peak)[None, :]), 0)
        tl.store(peaks + part, peak, mask=real)
        tl.store(totals + part, total, mask=real)
    else:
        tl.store(peaks + part, tl.full([HEADS], -float("inf"), tl.float32), mask=real)
        tl.store(totals + part, tl.zeros([HEADS], tl.float32), mask=real)


@triton.jit
def _shares(
    sums, base, step, peaks, totals, anchors, first, last, share, anchor_share, counts, held,
    factors, span, tiles, heads: tl.constexpr, softcap, NIBBLES: tl.constexpr,
    WEIGH: tl.constexpr, UNIT: tl.constexpr, HEADS: tl.constexpr, PARTS: tl.constexpr, SLOTS: tl.constexpr,
    BINS: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    start, stop = bounds(first, last, row, span)
    head = tl.arange(0, HEADS)
    real = head < heads
    lse, anchor = _log_sums(peaks, totals, anchors, row * heads + head, real, tiles, PARTS)
    if chunk == 0:
        tl.store(anchor_share + row, tl.sum(tl.where(real, tl.exp(anchor - lse), 0.0), 0) / heads)
    bins = tl.zeros([BINS], tl.int32)
    end = tl.minimum(chunk * CHUNK + CHUNK, stop)
    for begin in range(bound(chunk * CHUNK), bound(end), TILE):
        slot = begin + tl.arange(0, TILE)
        inside = (slot >= start) & (slot < stop)
        kept = sums + row * heads * (tiles * SLOTS) + lane_of_slot(slot, NIBBLES)
        value = tl.zeros([TILE], tl.float32)
        # Head by head, for threads would hold copies of what is left of a tile of all heads.
        for one in tl.range(heads, loop_unroll_factor=4):
            found = tl.load(kept + one * (tiles * SLOTS), mask=inside, other=0)
            zero, unit = tl.load(base + row * factors + one), tl.load(step + row * factors + one)
            logits = capped(zero + unit * found.to(tl.float32), softcap)
            value += tl.exp(logits - tl.sum(tl.where(head == one, lse, 0.0), 0))
        value /= heads
        tl.store(share + row * span + slot, value, mask=inside)
        counted, place = inside & (value >= 0), bin_of(value)
        bins += tl.histogram(place, BINS, mask=counted)
        if WEIGH:
            tl.atomic_add(held + row * BINS + place, (value * UNIT).to(tl.int64), mask=counted, sem="relaxed")
    tl.store(counts + (row * tl.num_programs(0) + chunk) * BINS + tl.arange(0, BINS), bins)


@triton.jit
def _log_sums(peaks, totals, anchors, head, real, tiles, PARTS: tl.constexpr):
    """Log-sum-exp of the heads' logits and anchors, 0 where there is nothing, and the anchors."""
    anchor = tl.load(anchors + head, mask=real, other=-float("inf"))
    top = anchor
    for begin in range(0, bound(tiles), PARTS):
        part = begin + tl.arange(0, PARTS)[None, :]
        asked = real[:, None] & (part < tiles)
        peak = tl.load(peaks + head[:, None] * tiles + part, mask=asked, other=-float("inf"))
        top = tl.maximum(top, tl.max(peak, 1))
    top = tl.where(top == -float("inf"), 0.0, top)
    mass = tl.exp(anchor - top)
    for begin in range(0, bound(tiles), PARTS):
        part = begin + tl.arange(0, PARTS)[None, :]
        asked = real[:, None] & (part < tiles)
        peak = tl.load(peaks + head[:, None] * tiles + part, mask=asked, other=-float("inf"))
        total = tl.load(totals + head[:, None] * tiles + part, mask=asked, other=0.0)
        mass += tl.sum(total * tl.exp(peak - top[:, None]), 1)
    return tl.where(mass > 0, top + tl.log(mass), 0.0), anchor
