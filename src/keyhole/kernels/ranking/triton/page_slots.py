"""Pages to slots without a sort: what is read before a page is found by comparing each page with each.

So the pages stay in the order of their slots, and two launches do where sorting and packing take dozens.

Shapes: rows are those of `places`, a list each; T tiles of its K pages.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from keyhole.kernels.backend.triton import bound
from keyhole.kernels.pq.types import Picked
from keyhole.kernels.ranking.types import Allowed, Paged

_TILE = 64  # pages that are compared with as many
_SLOTS = 32  # of a page, written at once


def page_slots(
    places: Tensor, scores: Tensor, shares: Tensor, anchored: Tensor, paged: Paged, allowed: Allowed
) -> Picked:
    """As the operation of that name, for 0 < K, of which no more than thousands need comparing."""
    batch, lists, count = places.shape
    heads, pages = shares.shape[1:]
    places, scores, shares = places.contiguous(), scores.contiguous(), shares.contiguous()
    tiles, rows = triton.cdiv(count, _TILE), batch * lists
    before = torch.empty(rows, count, dtype=torch.int32, device=places.device)
    wanted = torch.empty(batch * heads, tiles, dtype=torch.int32, device=places.device)
    held = torch.empty_like(anchored, memory_format=torch.contiguous_format)
    counts = torch.empty(batch, lists, dtype=torch.int32, device=places.device)
    width = max(1, min(allowed.most, paged.last))
    slots = torch.zeros(batch, lists, width, dtype=torch.int32, device=places.device)
    by_mass, of_list = allowed.mass is not None, heads // lists
    bounds = paged.first.contiguous(), paged.stop.contiguous()
    operands = (places, shares, anchored.contiguous(), *bounds, before, wanted)
    sizes = (count, pages, paged.page, lists)
    if rows:
        _compare[(tiles, batch * heads if by_mass else rows)](
            *operands, scores, allowed.mass, *sizes, HEADS=of_list if by_mass else 1, TILE=_TILE
        )
        _fill[(tiles + 1, rows)](
            *operands, allowed.limits, slots, counts, held, *sizes, width, allowed.floor,
            HEADS=of_list, BY_MASS=by_mass, TILE=_TILE, SLOTS=_SLOTS, num_warps=2,
        )  # fmt: skip
    return Picked(slots, counts, held)


@triton.jit(do_not_specialize=["count", "pages"])
def _compare(
    places, shares, anchored, first, stop, before, wanted, scores, mass, count, pages, page, lists,
    HEADS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Slots of the pages before each in the order of scores; where a mass is wanted, slots that reach it.

    A program is a tile of a list, or of a KV head where a mass is wanted, which HEADS of a list want.
    """
    tile, asks = tl.program_id(0), tl.program_id(1)
    row = asks // HEADS
    batch = row // lists
    begin, end = tl.load(first + batch), tl.load(stop + batch)
    mine = tile * TILE + tl.arange(0, TILE)
    place, _, size = _pages_of(places + row.to(tl.int64) * count, mine, count, begin, end, page)
    scores += row.to(tl.int64) * pages
    score = tl.load(scores + place)
    slots, share = tl.zeros((TILE,), tl.int32), tl.zeros((TILE,), tl.float32)
    for start in range(0, bound(count), TILE):
        others = start + tl.arange(0, TILE)
        other, _, width = _pages_of(places + row.to(tl.int64) * count, others, count, begin, end, page)
        rank = tl.load(scores + other)[None, :]
        ahead = (rank > score[:, None]) | ((rank == score[:, None]) & (others[None, :] < mine[:, None]))
        slots += tl.sum(tl.where(ahead, width[None, :], 0), 1)
        if mass is not None:
            held = tl.load(shares + asks.to(tl.int64) * pages + other, mask=others < count, other=0.0)
            share += tl.sum(tl.where(ahead, held[None, :], 0.0), 1)
    if asks % HEADS == 0:
        tl.store(before + row.to(tl.int64) * count + mine, slots, mask=mine < count)
    if mass is not None:
        lacks = tl.load(anchored + asks) + share < mass
        tl.store(wanted + asks * tl.num_programs(0) + tile, tl.sum(tl.where(lacks, size, 0)))


@triton.jit(do_not_specialize=["count", "pages", "width"])
def _fill(
    places, shares, anchored, first, stop, before, wanted, limits, slots, counts, held, count, pages, page,
    lists, width, floor, HEADS: tl.constexpr, BY_MASS: tl.constexpr, TILE: tl.constexpr,
    SLOTS: tl.constexpr,
):  # fmt: skip
    """Slots of a tile's pages behind those of the tiles before; the program after the last tile counts."""
    tile, row = tl.program_id(0), tl.program_id(1)
    tiles = tl.num_programs(0) - 1
    batch = row // lists
    limit = tl.load(limits + batch).to(tl.int32)
    if BY_MASS:
        most = tl.full((), 0, tl.int32)
        for head in range(HEADS):
            need = tl.full((), 0, tl.int32)
            for part in range(0, bound(tiles)):
                need += tl.load(wanted + (row * HEADS + head) * tiles + part)
            most = tl.maximum(most, need)
        limit = tl.minimum(tl.maximum(most, floor), limit)
    begin, end = tl.load(first + batch), tl.load(stop + batch)
    places += row.to(tl.int64) * count
    before += row.to(tl.int64) * count
    filled = tl.full((), 0, tl.int32)
    for part in range(0, bound(tile)):
        taken, _, _, _ = _taken(places, before, part * TILE, count, limit, begin, end, page, TILE)
        filled += tl.sum(taken)
    if tile == tiles:
        tl.store(counts + row, filled)
        for head in range(HEADS):
            own = row * HEADS + head
            share = tl.zeros((TILE,), tl.float32)
            for part in range(0, bound(tiles)):
                taken, size, place, there = _taken(
                    places, before, part * TILE, count, limit, begin, end, page, TILE
                )
                whole = tl.load(shares + own.to(tl.int64) * pages + place, mask=there, other=0.0)
                share += whole * taken.to(tl.float32) / tl.maximum(size, 1).to(tl.float32)
            tl.store(held + own, tl.load(anchored + own) + tl.sum(share))
    else:
        taken, _, place, _ = _taken(places, before, tile * TILE, count, limit, begin, end, page, TILE)
        at = filled + tl.cumsum(taken, 0) - taken
        slot = tl.maximum(place * page, begin)
        for start in range(0, bound(page), SLOTS):
            nth = start + tl.arange(0, SLOTS)[None, :]
            written = slots + row.to(tl.int64) * width + at[:, None] + nth
            asked = (nth < taken[:, None]) & (at[:, None] + nth < width)
            tl.store(written, (slot[:, None] + nth).to(tl.int32), mask=asked)


@triton.jit
def _pages_of(places, mine, count, begin, end, page):
    """Some of the K pages: which they are, whether they are there, and how many of their slots compete."""
    there = mine < count
    place = tl.load(places + mine, mask=there, other=0)
    ends = tl.minimum((place + 1) * page, end)
    size = tl.where(there, tl.maximum(ends - tl.maximum(place * page, begin), 0), 0)
    return place, there, size.to(tl.int32)


@triton.jit
def _taken(places, before, start, count, limit, begin, end, page, TILE: tl.constexpr):
    """How many slots are read of the pages of a tile; their sizes, which they are, whether they are there."""
    mine = start + tl.arange(0, TILE)
    place, there, size = _pages_of(places, mine, count, begin, end, page)
    room = limit - tl.load(before + mine, mask=there, other=0)
    return tl.minimum(tl.maximum(room, 0), size), size, place, there
