"""Sums of table entries picked by packed codes: what scoring and selection share.

A tile of slots is read as words of four slots' bytes, so that codes are read once for all heads of a table
word, and each thread adds for four slots. Tables lie in the first-level cache: the 16 entries of a 4-bit
sub-space are half a line of it, which a warp looks up in one access whatever its codes are.
"""

import triton
import triton.language as tl

SLOTS = 512  # of a tile: four for each of 128 threads


def tiles_of(slots: int) -> int:
    return triton.cdiv(slots, SLOTS)


@triton.jit
def tile_lanes(tile, SLOTS: tl.constexpr):
    """Where the sums [SLOTS, ..] of `head_sums` stand when they are kept in the order of the codes' bytes."""
    return tile * SLOTS + tl.arange(0, SLOTS)


@triton.jit
def slot_of_lane(lane, NIBBLES: tl.constexpr):
    """Bytes of 4-bit codes alternate between slots of both halves of a block; see `pq.codes`."""
    return lane // 64 * 64 + lane % 64 // 2 + lane % 2 * 32 if NIBBLES else lane


@triton.jit
def lane_of_slot(slot, NIBBLES: tl.constexpr):
    return slot // 64 * 64 + slot % 32 * 2 + slot // 32 % 2 if NIBBLES else slot


@triton.jit
def head_sums(
    tables, codes, tile, blocks, block_stride,
    ROWS: tl.constexpr, CENTROIDS: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """Sums [SLOTS, 4 or 2 heads] (uint32) for the slots of a tile, in the order of bytes.

    tables: a word's entries [S, C]; codes: the first byte of a row, ROWS of 64 of them in each of its blocks.
    """
    word = tl.arange(0, SLOTS // 4)
    # A tile may end behind the last block: it reads that one instead, and its result is not used.
    block = tl.minimum(tile * (SLOTS // 64) + word // 16, blocks - 1).to(tl.int64)
    place = (codes + block * block_stride).to(tl.pointer_type(tl.uint32)) + word % 16
    shift = (tl.arange(0, 4) * 8)[None, :]
    first, rest = tl.zeros([SLOTS // 4, 4], tl.uint32), tl.zeros([SLOTS // 4, 4], tl.uint32)
    for row in tl.range(ROWS, loop_unroll_factor=8):
        four = tl.load(place + row * 16)[:, None]
        if CENTROIDS == 16:
            low = _looked_up(tables, four >> shift, row * 32)
            high = _looked_up(tables, four >> (shift + 4), row * 32 + 16)
            first += (low & 0xFF00FF) + (high & 0xFF00FF)
            rest += (low >> 8) + (high >> 8)
        else:
            first += tl.load(tables + row * CENTROIDS + ((four >> shift) & (CENTROIDS - 1)))
    if CENTROIDS == 16:
        # The shifted words hold heads 2 and 3, and between them head 1, whose sum is known.
        rest -= first >> 16 << 8
        lower, upper = tl.join(first & 0xFFFF, rest & 0xFFFF), tl.join(first >> 16, rest >> 16)
        return tl.reshape(tl.join(lower, upper), [SLOTS, 4])
    else:  # noqa: RET505 - without it Triton compiles both
        return tl.reshape(tl.join(first & 0xFFFF, first >> 16), [SLOTS, 2])


@triton.jit
def _looked_up(tables, codes, begin):
    """Entries for the last four bits of codes. Tables start at a multiple of 64 bytes: no carry to add up."""
    places = tables.to(tl.int64) | ((codes & 15) << 2)
    return tl.load(places.to(tl.pointer_type(tl.uint32)) + begin)
