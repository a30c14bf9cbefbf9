"""Which keys of a prompt may matter to a tile of queries, by products of small integers."""

import triton
import triton.language as tl
from torch import Tensor

from keyhole.kernels.backend.triton import bound
from keyhole.kernels.sale.triton.keys import SmallKeys
from keyhole.kernels.sale.triton.limits import Limits
from keyhole.kernels.sale.triton.tiles import CHUNK, QUERIES, WORD, Prompt, place

UNITS = 4  # that share what a program reads of the keys: tensor cores outrun the L2 cache with fewer
_PROGRAMS = 1024  # that keep a GPU busy
_SPAN = 4096  # the fewest keys of a program


def estimate(prompt: Prompt, found: SmallKeys, limits: Limits, words: Tensor, tile: int) -> None:
    """Fill the candidates' part of int32 words [B, H, groups, W], a bit a key, of tiles from one on."""
    batch, tiles = words.shape[0], words.shape[2] // prompt.parts
    groups = triton.cdiv(tiles * prompt.groups, UNITS)
    programs = groups * prompt.keys.shape[1] * batch
    splits = max(1, min(triton.cdiv(_PROGRAMS, programs), prompt.keys.shape[2] // _SPAN))
    _estimate[(groups, prompt.keys.shape[1], batch * splits)](
        found.small, found.steps, *limits, prompt.unused, words, *words.stride()[:3],
        *prompt.lengths, found.steps.shape[2], tile, tiles, limits.least.shape[2],
        prompt.groups, splits, SIZE=found.small.shape[3], WIDTH=prompt.reach.width, UNITS=UNITS,
        SHARE=prompt.reach.rows, num_warps=8,
    )  # fmt: skip


@triton.jit
def _estimate(
    keys, steps, queries_small, least, unused, words, w_batch, w_head, w_group, queries, tokens, begin,
    window, runs, tile, tiles, units, groups: tl.constexpr, splits: tl.constexpr, SIZE: tl.constexpr,
    WIDTH: tl.constexpr, UNITS: tl.constexpr, SHARE: tl.constexpr,
):  # fmt: skip
    # The longest rows first, so that short ones fill the end.
    group = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head, batch = tl.program_id(1).to(tl.int64), (tl.program_id(2) // splits).to(tl.int64)
    head = batch * tl.num_programs(1) + kv_head
    PARTS: tl.constexpr = QUERIES // SHARE
    part = group * UNITS * PARTS + tl.arange(0, UNITS * PARTS)
    unit = part // PARTS
    start, _, end = place(tl.load(unused + batch), tile + unit // groups, queries, tokens, begin, window)
    end = tl.where((start < queries) & (unit < tiles * groups), end, 0)
    columns = group * UNITS * QUERIES + tl.arange(0, UNITS * QUERIES)
    column = head * units * QUERIES + columns
    channel, key = tl.arange(0, SIZE), tl.arange(0, CHUNK)
    asked = tl.trans(tl.load(queries_small + column[:, None] * SIZE + channel[None, :]))
    limit = tl.load(least + column)
    word = tl.arange(0, CHUNK // WORD)
    rows = words + batch * w_batch + (kv_head * groups + unit % groups) * w_head
    rows += (unit // groups * PARTS + part % PARTS) * w_group

    begun, last = begin // CHUNK, tl.cdiv(tl.max(end, 0), CHUNK)
    share = tl.cdiv(tl.maximum(last - begun, 0), splits)
    begun += share * (tl.program_id(2) % splits)
    for run in range(bound(begun), bound(tl.minimum(begun + share, last))):
        place_of = head * runs + run
        k = tl.load(keys + (place_of * CHUNK + key[:, None]) * SIZE + channel[None, :])
        # Products are whole, so they exceed what is left of the limit without its fraction.
        bar = limit / tl.load(steps + place_of)
        bar = tl.floor(tl.minimum(tl.maximum(bar, -1073741824.0), 1073741824.0)).to(tl.int32)
        over = tl.dot(k, asked, out_dtype=tl.int32) - bar[None, :]
        passing = tl.max(tl.reshape(over, (CHUNK, UNITS * PARTS, SHARE)), 2) > 0
        found = _packed(passing, WIDTH)
        at = run * (CHUNK // WORD) + word
        inside = (at * WORD >= begin)[:, None] & (at[:, None] * WORD < end[None, :])
        tl.store(rows[None, :] + at[:, None], found, mask=inside)


@triton.jit
def _packed(passing, WIDTH: tl.constexpr):
    """Words [CHUNK / 32, groups] of bool [CHUNK, groups]: the bits of each run that has one."""
    GROUPS: tl.constexpr = passing.shape[1]
    RUNS: tl.constexpr = CHUNK // WIDTH
    ALL: tl.constexpr = -1 if WIDTH == 32 else (1 << WIDTH) - 1
    some = tl.max(tl.reshape(passing.to(tl.int32), (RUNS, WIDTH, GROUPS)), 1)
    bits = (some * ALL) << (tl.arange(0, RUNS) * WIDTH % WORD)[:, None]
    return tl.sum(tl.reshape(bits, (CHUNK // WORD, RUNS // (CHUNK // WORD), GROUPS)), 1)
