"""The directory of a resident buffer: what is found, what is missing, and which places it takes."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from keyhole.kernels.resident_rows.reference import ResidentFound, ResidentState

_TILE = 2048  # places or slots at a time, 4 for each thread of a program: more would not fit its registers
_WARPS = 16


def resident_lookup(state: ResidentState, slots: Tensor, counts: Tensor) -> ResidentFound:
    """See `resident_lookup`. A program for each row: where a miss goes depends on all of its row."""
    rows, width = slots.shape
    places = torch.empty(rows, width, dtype=torch.int32, device=slots.device)
    missed, taken, misses = torch.empty_like(places), torch.empty_like(places), torch.empty_like(state.clock)
    found = ResidentFound(places, missed, taken, misses)
    slots = slots.contiguous()
    tile = min(_TILE, triton.next_power_of_2(max(width, state.owner.shape[1], 1)))
    _look_up[(rows,)](
        slots, counts.contiguous(), *state.tensors, *found, width, state.place.shape[1], state.owner.shape[1],
        RING=state.ring, TILE=tile, CHOSEN=triton.cdiv(max(width, 1), tile),
        PLACES=triton.cdiv(state.owner.shape[1], tile), num_warps=min(_WARPS, max(1, tile // 128)),
        num_stages=1,
    )  # fmt: skip
    return found


@triton.jit
def _look_up(
    slots, counts, place, owner, used, clock, held, counted, places, missed, taken, misses,
    width, capacity, pool, RING: tl.constexpr, TILE: tl.constexpr, CHOSEN: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    slots, places, missed, taken = (
        slots + row * width,
        places + row * width,
        missed + row * width,
        taken + row * width,
    )
    place, owner, used = place + row * capacity, owner + row * pool, used + row * pool
    now = tl.load(clock + row) + 1
    first, last = tl.load(held + 2 * row), tl.minimum(tl.load(held + 2 * row + 1), capacity)
    count = tl.minimum(tl.load(counts + row), width)
    hits, lacking = 0, 0
    for tile in range(CHOSEN):
        entry = tile * TILE + tl.arange(0, TILE)
        slot = tl.load(slots + entry, mask=entry < count, other=-1)
        meant = (slot >= 0) & (slot < last)
        newest = meant & (slot >= first)
        older = meant & (slot < first)
        there = tl.load(place + slot, mask=older, other=0)
        found, missing = older & (there >= 0), older & (there < 0)
        tl.store(used + there, now, mask=found)
        rank = lacking + tl.cumsum(missing.to(tl.int32), 0) - 1
        tl.store(missed + rank, slot.to(tl.int32), mask=missing)
        there = tl.where(newest, (pool + slot % RING).to(tl.int32), tl.where(missing, -1 - rank, there))
        # The place of a missing slot is not known yet: its rank among them stands there, below zero.
        tl.store(places + entry, tl.where(meant, there, 0), mask=entry < width)
        hits += tl.sum(found.to(tl.int32))
        lacking += tl.sum(missing.to(tl.int32))
    tl.store(misses + row, lacking)
    tl.atomic_add(counted, hits.to(tl.int64))
    tl.atomic_add(counted + 1, lacking.to(tl.int64))
    tl.debug_barrier()  # what other threads wrote is read below, and all have read the clock
    tl.store(clock + row, now)
    if lacking > 0:
        _vacate(place, owner, used, taken, lacking, now, pool, TILE, PLACES)
        tl.debug_barrier()
        for tile in range(CHOSEN):
            entry = tile * TILE + tl.arange(0, TILE)
            there = tl.load(places + entry, mask=entry < width, other=0)
            missing = there < 0
            slot = tl.load(slots + entry, mask=missing, other=0).to(tl.int32)
            there = tl.load(taken - 1 - there, mask=missing, other=0)
            tl.store(places + entry, there, mask=missing)
            tl.store(place + slot, there, mask=missing)
            tl.store(owner + there, slot, mask=missing)
            tl.store(used + there, now, mask=missing)


@triton.jit
def _vacate(place, owner, used, taken, lacking, now, pool, TILE: tl.constexpr, PLACES: tl.constexpr):
    """Choose the places used longest ago, and forget what is there."""
    oldest = _until(used, lacking, now, pool, TILE, PLACES)
    older = _used_until(used, oldest - 1, pool, TILE, PLACES)
    equals, chosen = 0, 0
    for tile in range(PLACES):
        index = tile * TILE + tl.arange(0, TILE)
        when = tl.load(used + index, mask=index < pool, other=now)
        equal = when == oldest
        goes = (when < oldest) | (equal & (older + equals + tl.cumsum(equal.to(tl.int32), 0) <= lacking))
        rank = chosen + tl.cumsum(goes.to(tl.int32), 0) - 1
        tl.store(taken + rank, index, mask=goes)
        slot = tl.load(owner + index, mask=goes, other=-1)
        tl.store(place + slot, -1, mask=slot >= 0)
        equals += tl.sum(equal.to(tl.int32))
        chosen += tl.sum(goes.to(tl.int32))


@triton.jit
def _until(used, lacking, now, pool, TILE: tl.constexpr, PLACES: tl.constexpr):
    """The earliest lookup up to which so many places were last used, by halving."""
    low, high = now, now - 1
    for tile in range(PLACES):
        index = tile * TILE + tl.arange(0, TILE)
        low = tl.minimum(low, tl.min(tl.load(used + index, mask=index < pool, other=now)))
    while low < high:
        middle = (low + high) // 2
        if _used_until(used, middle, pool, TILE, PLACES) >= lacking:
            high = middle
        else:
            low = middle + 1
    return low


@triton.jit
def _used_until(used, when, pool, TILE: tl.constexpr, PLACES: tl.constexpr):
    """How many places no lookup after `when` asked for."""
    total = 0
    for tile in range(PLACES):
        index = tile * TILE + tl.arange(0, TILE)
        seen = tl.load(used + index, mask=index < pool, other=when + 1)
        total += tl.sum((seen <= when).to(tl.int32))
    return total
