"""The definition of a resident buffer, in plain torch. Shapes as in `api.py`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ResidentState(NamedTuple):
    """What is where, on the device; written in place."""

    place: Tensor  # int32 [R, N]: the place of each slot, or -1
    owner: Tensor  # int32 [R, P]: the slot at each place, or -1
    used: Tensor  # int32 [R, P]: the lookup that last asked for it; 0 is none
    clock: Tensor  # int32 [R]: lookups so far
    held: Tensor  # int32 [R, 2]: the first slot that is in the ring, and the end of all slots
    counted: Tensor  # int64 [2]: reads that were found, and others, of all rows
    ring: int

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self[:-1]

    def of(self, rows: int | Tensor) -> ResidentState:
        """Of one row, as views, or of several."""
        each = (self.place, self.owner, self.used, self.clock, self.held)
        place, owner, used, clock, held = (tensor[rows] for tensor in each)
        return ResidentState(place, owner, used, clock, held, self.counted, self.ring)


class ResidentFound(NamedTuple):
    places: Tensor  # int32 [R, S]: where each chosen slot is once the pool is filled; 0 in unused entries
    missed: Tensor  # int32 [R, S]: the first `misses` are slots to fetch, in the order they were asked for
    taken: Tensor  # int32 [R, S]: the places they get, ascending
    misses: Tensor  # int32 [R]

    def of(self, row: int) -> ResidentFound:
        """Of one row, as views."""
        return ResidentFound(self.places[row], self.missed[row], self.taken[row], self.misses[row])


class Extent(NamedTuple):
    """Slots [first, last) of rows, and numbers [start, stop) of each."""

    first: int
    last: int
    start: int
    stop: int


def resident_lookup(state: ResidentState, slots: Tensor, counts: Tensor) -> ResidentFound:
    """See `resident_lookup`."""
    rows, width = slots.shape
    places, missed, taken = torch.zeros(3, rows, width, dtype=torch.int32, device=slots.device)
    found = ResidentFound(places, missed, taken, torch.zeros_like(state.clock))
    for row, count in enumerate(counts.tolist()):
        _look_up(state.of(row), slots[row, : max(count, 0)].long(), found.of(row))
    return found


def _look_up(state: ResidentState, slots: Tensor, found: ResidentFound) -> None:
    """One row's lookup."""
    first, last = state.held.tolist()
    state.clock.add_(1)
    meant = (slots >= 0) & (slots < last)
    newest = meant & (slots >= first)
    there = state.place[slots.masked_fill(~meant, 0)]
    missing = meant & ~newest & (there < 0)
    at_hand = meant & ~newest & ~missing
    state.used[there[at_hand].long()] = state.clock
    wanted = slots[missing]
    victims = _oldest(state, len(wanted))
    gone = state.owner[victims].long()
    state.place[gone[gone >= 0]] = -1
    state.place[wanted], state.owner[victims] = victims.int(), wanted.int()
    state.used[victims] = state.clock
    state.counted.add_(torch.stack([at_hand.sum(), missing.sum()]))
    found.misses.fill_(len(wanted))
    found.missed[: len(wanted)], found.taken[: len(wanted)] = wanted.int(), victims.int()
    there[missing] = victims.int()
    in_ring = (len(state.owner) + slots % state.ring).int()
    found.places[: len(slots)] = torch.where(newest, in_ring, there).masked_fill(~meant, 0)


def _oldest(state: ResidentState, count: int) -> Tensor:
    """So many places that this lookup did not use, those used longest ago; ascending."""
    free = (state.used < state.clock).nonzero().squeeze(1)
    order = state.used[free].argsort(stable=True)[:count]
    return free[order].sort().values


def resident_fill(pool: Tensor, held: Tensor, found: ResidentFound) -> None:
    """See `resident_fill`."""
    for row, count in enumerate(found.misses.tolist()):
        missed, taken = found.missed[row, :count].long(), found.taken[row, :count].long()
        pool[row, taken] = held[row].index_select(0, missed.to(held.device)).to(pool.device)


def resident_append(state: ResidentState, pool: Tensor, held: Tensor, rows: Tensor) -> None:
    """See `resident_append`."""
    places, count = state.owner.shape[1], rows.shape[1]
    for row, (first, last) in enumerate(state.held.tolist()):
        slots = torch.arange(last, last + count)
        pool[row, (places + slots % state.ring).to(pool.device)] = rows[row]
        room = max(0, min(count, held.shape[1] - last))
        held[row, last : last + room] = rows[row, :room].to(held.device)
        state.held[row, 0].fill_(max(first, last + count - state.ring))
        state.held[row, 1].fill_(last + count)


def part(held: Tensor, span: Extent) -> Tensor:
    """See `read_rows`."""
    return held[:, span.first : span.last, span.start : span.stop]
