"""Choice of the slots that hold most estimated mass, without sorting them.

All is counted: the bin of shares in which the choice ends is known from the counts of all bins. Shares in
that bin, few among many, are listed in the order of slots; one program for each row finds the lowest share
that is needed, and how many of its equals. Chosen slots are then written where the counts before them say.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from keyhole.kernels.backend.triton import bound, padded
from keyhole.kernels.pq.triton.shares import BINS, TILE, UNIT, WARPS, Range, bin_of, bounds, shares
from keyhole.kernels.pq.types import Budget, Picked

_LISTED = 1024  # shares that the program of a row holds at a time


def pq_select(
    query: Tensor, codebooks: Tensor, buffer: Tensor, first: Tensor, last: Tensor, span: int, scale: float,
    softcap: float | None, anchor_lse: Tensor, budget: Budget,
) -> Picked:  # fmt: skip
    """See `keyhole.kernels.pq.select`; first and last: integers [R] on the device, none behind `span`."""
    rows, device = query.shape[0], query.device
    # Nothing to scan is one slot that is outside of every range.
    within = Range(first, last, max(1, span))
    weigh = budget.floor < budget.cap
    found = shares(query, codebooks, buffer, within, scale, softcap, anchor_lse, weigh=weigh)
    chunks = within.chunks
    picked = Picked(
        torch.empty(rows, budget.cap, dtype=torch.int32, device=device),
        torch.empty(rows, dtype=torch.int32, device=device),
        torch.empty(rows, dtype=torch.float32, device=device),
    )
    edge = torch.empty(rows, 3, dtype=torch.int32, device=device)
    marks = torch.empty(rows, chunks, 2, dtype=torch.int32, device=device)
    above = torch.empty(rows, chunks, dtype=torch.float32, device=device)
    near = torch.empty(rows, within.span, dtype=torch.int32, device=device)
    goal = {"floor": budget.floor, "cap": budget.cap, "goal": budget.mass, "WEIGH": weigh}
    place = {"span": within.span, "TILE": TILE, "CHUNK": within.chunk, "num_warps": WARPS}
    _narrow[(chunks, rows)](
        *found, within.first, within.last, edge, marks, above, near, **goal, **place,
        UNIT=UNIT, BINS=BINS, CHUNKS=padded(chunks, 1),
    )  # fmt: skip
    _settle[(rows,)](
        near, edge, above, found.anchor, picked.counts, picked.mass, within.span, chunks, **goal,
        CHUNKS=padded(chunks, 1), TILE=_LISTED, num_warps=16,
    )  # fmt: skip
    _write[(chunks, rows)](
        found.share, within.first, within.last, edge, marks, near, picked.slots, picked.counts, budget.cap,
        **place,
    )  # fmt: skip
    return picked


@triton.jit
def _narrow(
    share, anchor, counts, held, first, last, edge, marks, above, near, floor, cap, goal, span,
    WEIGH: tl.constexpr, UNIT: tl.constexpr, BINS: tl.constexpr, CHUNKS: tl.constexpr, TILE: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Find the bin in which the choice ends; list the shares in it, and sum those above."""
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    chunks = tl.num_programs(0)
    other, place = tl.arange(0, CHUNKS)[:, None], tl.arange(0, BINS)
    counted = tl.load(counts + (row * chunks + other) * BINS + place[None, :], mask=other < chunks, other=0)
    every = tl.sum(counted, 0)
    number = tl.cumsum(every, 0)
    mass = number.to(tl.float32)
    if WEIGH:
        mass = tl.load(anchor + row) + tl.cumsum(tl.load(held + row * BINS + place), 0).to(tl.float32) / UNIT
    last_bin = tl.sum((~_enough(number, mass, floor, cap, goal, WEIGH)).to(tl.int32), 0)
    last_bin = tl.minimum(last_bin, BINS - 1)
    before = tl.sum(tl.where(other < chunk, counted, 0), 0)
    higher = tl.sum(tl.where(place < last_bin, before, 0), 0)
    listed = tl.sum(tl.where(place == last_bin, before, 0), 0)
    tl.store(marks + (row * chunks + chunk) * 2, higher)
    tl.store(marks + (row * chunks + chunk) * 2 + 1, listed)
    if chunk == 0:
        tl.store(edge + row * 3, last_bin)
        tl.store(edge + row * 3 + 1, tl.sum(tl.where(place < last_bin, every, 0), 0))
        tl.store(edge + row * 3 + 2, tl.sum(tl.where(place == last_bin, every, 0), 0))
    start, stop = bounds(first, last, row, span)
    total = tl.zeros([TILE], tl.float32)
    end = tl.minimum(chunk * CHUNK + CHUNK, stop)
    for begin in range(bound(chunk * CHUNK), bound(end), TILE):
        slot = begin + tl.arange(0, TILE)
        value, over, among = _parted(share + row * span, slot, start, stop, last_bin)
        total += tl.where(over, value, 0.0)
        rank = listed + tl.cumsum(among.to(tl.int32), 0) - 1
        tl.store(near + row * span + rank, value.to(tl.int32, bitcast=True), mask=among)
        listed += tl.sum(among.to(tl.int32), 0)
    tl.store(above + row * chunks + chunk, tl.sum(total, 0))


@triton.jit
def _settle(
    near, edge, above, anchor, counts, masses, span, chunks, floor, cap, goal,
    WEIGH: tl.constexpr, CHUNKS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Find the lowest share that is chosen; replace each listed share by how many are chosen up to it."""
    row = tl.program_id(0).to(tl.int64)
    near += row * span
    higher, listed = tl.load(edge + row * 3 + 1), tl.load(edge + row * 3 + 2)
    chunk = tl.arange(0, CHUNKS)
    mass = tl.sum(tl.load(above + row * chunks + chunk, mask=chunk < chunks, other=0.0), 0)
    mass += tl.load(anchor + row)
    lowest = tl.zeros([1], tl.uint32)
    digit = tl.arange(0, 16).to(tl.uint32)
    for done in tl.static_range(0, 32, 4):
        trial = lowest | (digit << (28 - done))
        number, weight = _reaching(near, listed, trial, TILE)
        enough = _enough(higher + number, mass + weight, floor, cap, goal, WEIGH)
        lowest |= (tl.maximum(tl.sum(enough.to(tl.int32), 0), 1) - 1).to(tl.uint32) << (28 - done)
    # `lowest` itself, and the next share above it.
    number, weight = _reaching(near, listed, lowest + tl.arange(0, 2).to(tl.uint32), TILE)
    above_lowest = tl.arange(0, 2) == 1
    over = tl.sum(tl.where(above_lowest, number, 0), 0)
    weight = tl.sum(tl.where(above_lowest, weight, 0.0), 0)
    ties = cap - higher - over
    if WEIGH:
        lacking = tl.ceil((goal - mass - weight) / tl.sum(lowest.to(tl.float32, bitcast=True), 0))
        wanted = tl.maximum(tl.minimum(lacking, cap * 1.0).to(tl.int32), floor - higher - over)
        ties = tl.minimum(ties, tl.maximum(wanted, 0))
    chosen, equals = 0, 0
    for begin in range(0, bound(listed), TILE):
        at = begin + tl.arange(0, TILE)
        bits = tl.load(near + at, mask=at < listed, other=0).to(tl.uint32, bitcast=True)
        equal = ((bits == lowest) & (at < listed)).to(tl.int32)
        taken = (at < listed) & ((bits > lowest) | ((equal > 0) & (equals + tl.cumsum(equal, 0) <= ties)))
        tl.store(near + at, chosen + tl.cumsum(taken.to(tl.int32), 0), mask=at < listed)
        mass += tl.sum(tl.where(taken, bits.to(tl.float32, bitcast=True), 0.0), 0)
        chosen += tl.sum(taken.to(tl.int32), 0)
        equals += tl.sum(equal, 0)
    tl.store(counts + row, higher + chosen)
    tl.store(masses + row, mass)


@triton.jit
def _write(
    share, first, last, edge, marks, near, slots, counts, cap, span, TILE: tl.constexpr, CHUNK: tl.constexpr
):
    """Write the chosen slots of a chunk, and its part of the zeros behind them."""
    chunk, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    start, stop = bounds(first, last, row, span)
    mark = marks + (row * tl.num_programs(0) + chunk) * 2
    higher, listed, last_bin = tl.load(mark), tl.load(mark + 1), tl.load(edge + row * 3)
    near += row * span
    slots += row * cap
    end = tl.minimum(chunk * CHUNK + CHUNK, stop)
    for begin in range(bound(chunk * CHUNK), bound(end), TILE):
        slot = begin + tl.arange(0, TILE)
        _, over, among = _parted(share + row * span, slot, start, stop, last_bin)
        over, among = over.to(tl.int32), among.to(tl.int32)
        passed = listed + tl.cumsum(among, 0)
        chosen = tl.load(near + passed - 1, mask=passed > 0, other=0)
        earlier = tl.load(near + passed - 2, mask=passed > 1, other=0)
        position = higher + tl.cumsum(over, 0) + chosen - 1
        taken = (over > 0) | ((among > 0) & (chosen > earlier))
        tl.store(slots + position, slot, mask=taken & (position < cap))
        higher += tl.sum(over, 0)
        listed += tl.sum(among, 0)
    count = tl.load(counts + row)
    for begin in range(bound(chunk * TILE), bound(cap), bound(tl.num_programs(0) * TILE)):
        at = begin + tl.arange(0, TILE)
        tl.store(slots + at, 0, mask=(at >= count) & (at < cap))


@triton.jit
def _enough(number, mass, floor, cap, goal, WEIGH: tl.constexpr):
    return (number >= cap) | ((number >= floor) & (mass >= goal)) if WEIGH else number >= cap


@triton.jit
def _parted(share, slot, start, stop, last_bin):
    """Shares of the slots, which of them are in a bin above the last one, and which in that one."""
    inside = (slot >= start) & (slot < stop)
    value = tl.load(share + slot, mask=inside, other=0.0)
    counted, place = inside & (value >= 0), bin_of(value)
    return value, counted & (place < last_bin), counted & (place == last_bin)


@triton.jit
def _reaching(near, listed, bits, TILE: tl.constexpr):
    """How many of the listed shares are at least those of some bits, and their sums."""
    number, weight = tl.zeros(bits.shape, tl.int32), tl.zeros(bits.shape, tl.float32)
    for begin in range(0, bound(listed), TILE):
        at = begin + tl.arange(0, TILE)
        found = tl.load(near + at, mask=at < listed, other=0).to(tl.uint32, bitcast=True)
        hit = (found[None, :] >= bits[:, None]) & (at < listed)[None, :]
        number += tl.sum(hit.to(tl.int32), 1)
        weight += tl.sum(tl.where(hit, found.to(tl.float32, bitcast=True)[None, :], 0.0), 1)
    return number, weight
