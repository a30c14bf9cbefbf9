"""What a prompt's tiles read: maps of bits made whole, and lists of blocks without what is not read."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from keyhole.kernels.backend.triton import bound
from keyhole.kernels.sale.triton.tiles import FEW, QUERIES, READERS, WORD, Prompt, place

_WORDS = 256  # of a map that a program looks at together


class Lists(NamedTuple):
    """Blocks of 32 keys before a tile's window, by how much of them its queries read; W of them at most.

    Four bits tell who reads a key, one for each part of the tile.

    Attributes:
        many: int32 `[B, H, tiles, W]`, blocks of which many keys are read.
        readers: int32 `[B, H, tiles, W, 4]`, who reads their keys, 8 of them a word.
        few: int32 `[B, H, tiles, W, 8]`, keys of blocks of which few are read: 16 times a position, and who
            reads it; -1 where there are no more. With means the block's own position comes first.
        none: int32 `[B, H, tiles, W]`, blocks of which nothing is read.
        counts: int32 `[B, H, tiles, 3]`, how many blocks are in each of the three lists.
    """

    many: Tensor
    readers: Tensor
    few: Tensor
    none: Tensor
    counts: Tensor

    @staticmethod
    def of(prompt: Prompt, tiles: int, blocks: int) -> "Lists":
        """Room for so many tiles and blocks of keys."""
        shape = (*prompt.query.shape[:2], tiles)
        parts = ((blocks,), (blocks, READERS.value), (blocks, FEW.value), (blocks,), (3,))
        device = prompt.query.device
        return Lists(*(torch.empty(*shape, *part, dtype=torch.int32, device=device) for part in parts))

    @staticmethod
    def bytes_of(blocks: int) -> int:
        """What a tile's lists take."""
        return 4 * blocks * (2 + READERS.value + FEW.value)


def lists(prompt: Prompt, words: Tensor, kept: Tensor, tile: int) -> Lists:
    """Of tiles from one on; their words [B, H, groups, W] are completed by what is always read.

    Fills kept [B, H, groups] with the keys that each reads.
    """
    batch, heads, groups, width = words.shape
    tiles = groups // prompt.parts
    found = Lists.of(prompt, tiles, width)
    _lists[(tiles, heads, batch)](
        words, kept, *found, prompt.unused, *words.stride()[:3], *kept.stride()[:2], *prompt.lengths, width,
        tile, MEANS=prompt.reach.means, SHARE=prompt.reach.rows, WORDS=_WORDS,
    )  # fmt: skip
    return found


@triton.jit
def _lists(
    words, kept, many, readers, few, none, counts, unused, w_batch, w_head, w_group, kept_batch, kept_head,
    queries, tokens, begin, window, width, tile, MEANS: tl.constexpr, SHARE: tl.constexpr,
    WORDS: tl.constexpr,
):  # fmt: skip
    number, head, batch = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    start, first, end = place(tl.load(unused + batch), tile + number, queries, tokens, begin, window)
    stop = tl.where(start < queries, first + tl.minimum(QUERIES, queries - start), 0)
    end = tl.where(start < queries, end, 0)
    part = tl.arange(0, QUERIES // SHARE)
    rows = words + batch * w_batch + head * w_head + (number * (QUERIES // SHARE) + part)[:, None] * w_group
    unit = (batch * tl.num_programs(1) + head) * tl.num_programs(0) + number
    total, listed, keyed, skipped = tl.zeros_like(part), 0, 0, 0
    for at in range(0, bound(width), WORDS):
        word = at + tl.arange(0, WORDS)
        left = tl.minimum(tl.maximum(stop - word * WORD, 0), WORD)
        always = tl.where(left == WORD, -1, (1 << tl.minimum(left, WORD - 1)) - 1)
        chosen, candidate = (word * WORD >= begin) & (word * WORD < end), word * WORD < end
        bits = tl.load(rows + word[None, :], mask=chosen[None, :], other=0)
        bits = tl.where(chosen[None, :], bits, always[None, :])
        bits = tl.where((start + part * SHARE < queries)[:, None], bits, 0)
        tl.store(rows + word[None, :], bits, mask=(word < width)[None, :])
        total += tl.sum(_ones(bits), 1)
        either = tl.reduce_or(bits, 0)
        crowded = candidate & (_ones(either) > FEW - MEANS)
        sparse = candidate & (either != 0) & ~crowded
        empty = candidate & (either == 0)
        entry = unit * width + _places(crowded, listed)
        tl.store(many + entry, word, mask=crowded)
        _list_readers(readers + entry * READERS, bits, part, crowded)
        entry = unit * width + _places(sparse, keyed)
        _list_keys(few + entry * FEW, word, bits, either, part, sparse, MEANS)
        tl.store(none + unit * width + _places(empty, skipped), word, mask=empty)
        listed += tl.sum(crowded.to(tl.int32), 0)
        keyed += tl.sum(sparse.to(tl.int32), 0)
        skipped += tl.sum(empty.to(tl.int32), 0)
    tl.store(counts + unit * 3, listed)
    tl.store(counts + unit * 3 + 1, keyed)
    tl.store(counts + unit * 3 + 2, skipped)
    tl.store(kept + batch * kept_batch + head * kept_head + number * (QUERIES // SHARE) + part, total)


@triton.jit
def _places(flags, begun):
    """Where entries go that are flagged, after so many."""
    flags = flags.to(tl.int32)
    return begun + tl.cumsum(flags, 0) - flags


@triton.jit
def _list_readers(entries, bits, part, there):
    """Who reads each key of blocks of which the parts of a tile read these bits [parts, blocks]."""
    for entry in tl.static_range(READERS):
        spread = (bits >> (entry * 8)) & 0xFF
        spread = (spread | spread << 12) & 0x000F000F
        spread = (spread | spread << 6) & 0x03030303
        spread = (spread | spread << 3) & 0x11111111
        tl.store(entries + entry, tl.sum(spread << part[:, None], 0), mask=there)


@triton.jit
def _list_keys(entries, word, bits, either, part, there, MEANS: tl.constexpr):
    """Positions of the keys of blocks whose bits are set for either part, and who reads them."""
    if MEANS:
        tl.store(entries, (word * WORD) << READERS, mask=there)
    for entry in tl.static_range(MEANS, FEW):
        lowest = either & -either
        who = tl.sum(tl.where(bits & lowest[None, :] != 0, 1 << part[:, None], 0), 0)
        key = ((word * WORD + _ones(lowest - 1)) << READERS) + who
        tl.store(entries + entry, tl.where(either != 0, key, -1), mask=there)
        either ^= lowest


@triton.jit
def _ones(bits):
    """How many bits are set: sums of 1, 2, 4 and then 8 of them side by side."""
    bits = bits - ((bits >> 1) & 0x55555555)
    bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F
    return (bits * 0x01010101) >> 24
