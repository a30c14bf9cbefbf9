"""The greatest of many scores by their digits: no sort, five launches, or one where a row is short.

Scores become whole numbers that order alike. Each launch counts one more digit, of eight bits, of the numbers
that may still be the least one taken; the last takes what is above it, and of its equals the lowest places.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from keyhole.kernels.backend.triton import bound

_SHORT = 8 << 10  # scores that one program holds in its registers
_LEAST_BLOCK, _BLOCK = 1 << 10, 8 << 10  # scores of a program, where a row has several
_PROGRAMS = 32  # of a row, about: each adds up what the others of its row counted
_TOGETHER = 16  # programs whose counts are added at once

DIGITS = tl.constexpr(4)
BINS = tl.constexpr(256)


def top_slots(scores: Tensor, count: int) -> Tensor:
    """Places int64 [..., count] of the greatest of `scores [..., N]` (float32), ascending; 0 < count < N."""
    lines = scores.reshape(-1, scores.shape[-1]).contiguous()
    rows, slots = lines.shape
    places = torch.empty(rows, count, dtype=torch.int64, device=scores.device)
    if slots <= _SHORT and rows:
        size = max(128, triton.next_power_of_2(slots))
        warps = min(max(size // 512, 4), 16)
        _of_a_short_row[(rows,)](lines, places, slots, count, SLOTS=size, num_warps=warps)
    elif rows:
        _of_long_rows(lines, places)
    return places.view(*scores.shape[:-1], count)


def _of_long_rows(scores: Tensor, places: Tensor) -> None:
    rows, slots = scores.shape
    size = min(max(triton.next_power_of_2(slots // _PROGRAMS), _LEAST_BLOCK), _BLOCK)
    blocks = triton.cdiv(slots, size)
    counted = torch.empty(2, rows, blocks, BINS.value, dtype=torch.int16, device=scores.device)
    ahead = torch.empty(rows, blocks, dtype=torch.int32, device=scores.device)
    state = torch.empty(DIGITS.value, rows, 2, dtype=torch.int32, device=scores.device)
    operands, sizes = (scores, counted, ahead, state), (slots, places.shape[1], rows, blocks)
    tiles = {"SLOTS": size, "TOGETHER": _TOGETHER, "num_warps": 8}
    for digit in range(DIGITS.value):
        _count[(blocks, rows)](*operands, *sizes, DIGIT=digit, **tiles)
    _take[(blocks, rows)](*operands, places, *sizes, **tiles)


@triton.jit(do_not_specialize=["slots", "count"])
def _of_a_short_row(scores, places, slots, count, SLOTS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, SLOTS)
    numbers = _numbers(scores + row * slots, slot, slots)
    prefix, wanted = tl.full((), 0, tl.uint32), count
    for digit in range(DIGITS):
        rival = (slot < slots) & _alike(numbers, prefix, digit)
        prefix, wanted = _narrowed(_bins(numbers, rival, digit), prefix, wanted)
    _store_taken(places + row * count, numbers, slot, slot < slots, prefix, wanted)


@triton.jit(do_not_specialize=["slots", "count", "rows", "blocks"])
def _count(
    scores, counted, ahead, state, slots, count, rows, blocks, DIGIT: tl.constexpr, SLOTS: tl.constexpr,
    TOGETHER: tl.constexpr,
):  # fmt: skip
    block, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    slot = block * SLOTS + tl.arange(0, SLOTS)
    numbers = _numbers(scores + row * slots, slot, slots)
    prefix, _ = _resolved(counted, state, count, rows, blocks, DIGIT, TOGETHER)
    rival = (slot < slots) & _alike(numbers, prefix, DIGIT)
    written = ((DIGIT % 2 * rows + row) * blocks + block) * BINS + tl.arange(0, BINS)
    tl.store(counted + written, _bins(numbers, rival, DIGIT).to(tl.int16))
    if DIGIT == DIGITS - 1:
        sure = (slot < slots) & ((numbers >> 8) > prefix)
        tl.store(ahead + row * blocks + block, tl.sum(sure.to(tl.int32)))


@triton.jit(do_not_specialize=["slots", "count", "rows", "blocks"])
def _take(
    scores, counted, ahead, state, places, slots, count, rows, blocks, SLOTS: tl.constexpr,
    TOGETHER: tl.constexpr,
):  # fmt: skip
    block, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    slot = block * SLOTS + tl.arange(0, SLOTS)
    numbers = _numbers(scores + row * slots, slot, slots)
    least, wanted = _resolved(counted, state, count, rows, blocks, DIGITS, TOGETHER)
    bins = counted + (((DIGITS - 1) % 2 * rows + row) * blocks) * BINS
    digit = (least & (BINS - 1)).to(tl.int32)
    above, equal = _before(bins, ahead + row * blocks, block, blocks, digit, TOGETHER)
    places += row * count + above + tl.minimum(equal, wanted)
    _store_taken(places, numbers, slot, slot < slots, least, tl.maximum(wanted - equal, 0))


@triton.jit
def _numbers(scores, slot, slots):
    """uint32 that order as scores do; NaN is as -inf, -0 as 0."""
    score = tl.load(scores + slot, mask=slot < slots, other=0.0)
    score = tl.where(score == 0, 0.0, tl.where(score == score, score, float("-inf")))
    bits = score.to(tl.int32, bitcast=True)
    signed = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return signed.to(tl.uint32, bitcast=True) ^ 0x80000000


@triton.jit
def _alike(numbers, prefix, digit):
    """Which begin with the digits before this one that are known."""
    return ((numbers >> (24 - 8 * digit)) >> 8) == prefix


@triton.jit
def _bins(numbers, rival, digit):
    """How many rivals have which digit."""
    digits = (numbers >> (24 - 8 * digit)) & (BINS - 1)
    return tl.histogram(digits.to(tl.int32), BINS, mask=rival)


@triton.jit
def _narrowed(bins, prefix, wanted):
    """One digit more of the least number taken, and how many of those alike in it are wanted."""
    reaching = tl.cumsum(bins, 0, reverse=True)
    digit = tl.sum((reaching >= wanted).to(tl.int32)) - 1
    above = tl.sum(tl.where(tl.arange(0, BINS) > digit, bins, 0))
    return (prefix << 8) | digit.to(tl.uint32), wanted - above


@triton.jit
def _resolved(counted, state, count, rows, blocks, DIGIT: tl.constexpr, TOGETHER: tl.constexpr):
    """The first DIGIT digits of the least number taken, and how many of those alike in them are wanted."""
    row = tl.program_id(1).to(tl.int64)
    prefix, wanted = tl.full((), 0, tl.uint32), count
    if DIGIT > 1:
        known = state + ((DIGIT - 2) * rows + row) * 2
        prefix, wanted = tl.load(known).to(tl.uint32, bitcast=True), tl.load(known + 1)
    if DIGIT > 0:
        start = (((DIGIT - 1) % 2 * rows + row) * blocks) * BINS
        bins = tl.zeros((BINS,), tl.int32)
        for first in range(0, bound(blocks), TOGETHER):
            bins += tl.sum(_counts_of(counted + start, first, blocks, TOGETHER), 0)
        prefix, wanted = _narrowed(bins, prefix, wanted)
        if tl.program_id(0) == 0:
            learnt = state + ((DIGIT - 1) * rows + row) * 2
            tl.store(learnt, prefix.to(tl.int32, bitcast=True))
            tl.store(learnt + 1, wanted)
    return prefix, wanted


@triton.jit
def _counts_of(bins, first, blocks, TOGETHER: tl.constexpr):
    """What TOGETHER programs of a row counted; those from `blocks` on nothing."""
    block = first + tl.arange(0, TOGETHER)[:, None]
    return tl.load(bins + block * BINS + tl.arange(0, BINS)[None, :], mask=block < blocks, other=0).to(
        tl.int32
    )


@triton.jit
def _before(bins, ahead, block, blocks, digit, TOGETHER: tl.constexpr):
    """Scores of the programs before this one: above the least that is taken, and equal to it."""
    above, equal = tl.full((), 0, tl.int32), tl.full((), 0, tl.int32)
    column = tl.arange(0, BINS)[None, :]
    for first in range(0, bound(blocks), TOGETHER):
        counts = _counts_of(bins, first, block, TOGETHER)
        other = first + tl.arange(0, TOGETHER)
        above += tl.sum(tl.load(ahead + other, mask=other < block, other=0))
        above += tl.sum(tl.sum(tl.where(column > digit, counts, 0), 1), 0)
        equal += tl.sum(tl.sum(tl.where(column == digit, counts, 0), 1), 0)
    return above, equal


@triton.jit
def _store_taken(places, numbers, slot, there, least, wanted):
    equal = there & (numbers == least)
    taken = (there & (numbers > least)) | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= wanted))
    place = tl.cumsum(taken.to(tl.int32), 0) - 1
    tl.store(places + place, slot.to(tl.int64), mask=taken)
