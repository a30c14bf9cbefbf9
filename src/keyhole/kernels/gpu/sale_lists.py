"""What each tile of a prompt reads: its map of bits made whole, and a list without what is left out."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from keyhole.kernels.gpu.common import bound
from keyhole.kernels.gpu.sale_tiles import GRAIN, QUERIES, WORD, Prompt, place

_GRAIN = tl.constexpr((1 << GRAIN.value) - 1)  # its bits
_WORDS = 256  # of a map that a program looks at together


def lists(prompt: Prompt, words: Tensor, kept: Tensor, tile: int) -> tuple[Tensor, Tensor]:
    """Runs of 8 keys before each tile's window that it reads some of: int32 [B, H, tiles, N / 8] and counts.

    Completes words [B, H, tiles, W] of tiles from one on by what is always read; fills kept [B, H, tiles].
    """
    batch, heads, tiles, width = words.shape
    shape = (batch, heads, tiles, width * (WORD.value // GRAIN.value))
    found = torch.empty(shape, dtype=torch.int32, device=words.device)
    counts = torch.zeros(shape[:3], dtype=torch.int32, device=words.device)
    _lists[(tiles, heads, batch)](
        words, kept, found, counts, prompt.unused, *words.stride()[:3], *kept.stride()[:2], *prompt.lengths,
        width, tile, WORDS=_WORDS,
    )  # fmt: skip
    return found, counts


@triton.jit
def _lists(
    words, kept, found, counts, unused, w_batch, w_head, w_tile, kept_batch, kept_head, queries, tokens,
    begin, window, width, tile, WORDS: tl.constexpr,
):  # fmt: skip
    number, head, batch = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    start, first, end = place(tl.load(unused + batch), tile + number, queries, tokens, begin, window)
    stop = tl.where(start < queries, first + tl.minimum(QUERIES, queries - start), 0)
    end = tl.where(start < queries, end, 0)
    row = words + batch * w_batch + head * w_head + number * w_tile
    unit = (batch * tl.num_programs(1) + head) * tl.num_programs(0) + number
    entries = found + unit * width * (WORD // GRAIN)
    part = tl.arange(0, WORD // GRAIN)
    listed, total = 0, 0
    for at in range(0, bound(width), WORDS):
        word = at + tl.arange(0, WORDS)
        left = tl.minimum(tl.maximum(stop - word * WORD, 0), WORD)
        always = tl.where(left == WORD, -1, (1 << tl.minimum(left, WORD - 1)) - 1)
        chosen = (word * WORD >= begin) & (word * WORD < end)
        bits = tl.where(chosen, tl.load(row + word, mask=chosen, other=0), always)
        tl.store(row + word, bits, mask=word < width)
        total += tl.sum(_ones(bits), 0)
        some = (bits[:, None] >> (part * GRAIN)[None, :]) & _GRAIN != 0
        some &= (word * WORD < end)[:, None]
        some = tl.reshape(some, (WORDS * (WORD // GRAIN),)).to(tl.int32)
        entry = at * (WORD // GRAIN) + tl.arange(0, WORDS * (WORD // GRAIN))
        tl.store(entries + listed + tl.cumsum(some, 0) - some, entry, mask=some != 0)
        listed += tl.sum(some, 0)
    tl.store(counts + unit, listed)
    tl.store(kept + batch * kept_batch + head * kept_head + number, total)


@triton.jit
def _ones(bits):
    """How many bits are set: sums of 1, 2, 4 and then 8 of them side by side."""
    bits = bits - ((bits >> 1) & 0x55555555)
    bits = (bits & 0x33333333) + ((bits >> 2) & 0x33333333)
    bits = (bits + (bits >> 4)) & 0x0F0F0F0F
    return (bits * 0x01010101) >> 24
