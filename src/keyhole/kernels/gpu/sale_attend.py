"""Exact attention of a prompt's tiles over the keys they read."""

import triton
import triton.language as tl
from torch import Tensor

from keyhole.kernels.gpu.common import bound, padded, product
from keyhole.kernels.gpu.sale_tiles import GRAIN, QUERIES, WORD, Prompt, place

_BITS = 1.4426950408889634  # of a factor e


def attend(prompt: Prompt, words: Tensor, found: Tensor, counts: Tensor, tile: int, out: Tensor) -> None:
    """Fill out [B, H, Q, Dv] for tiles from one on: lists and their counts, then what follows them."""
    query, keys, values = prompt.query, prompt.keys, prompt.values
    batch, heads, tiles, _ = words.shape
    size, width = query.shape[3], values.shape[3]
    tiling = prompt.tiling
    _attend[(tiles * heads * (QUERIES.value // tiling["ROWS"]), batch)](
        query, keys, values, words, found, counts, prompt.unused, out, *query.stride()[:3],
        *keys.stride()[:3], *values.stride()[:3], *words.stride()[:3], *out.stride()[:3],
        *prompt.lengths, tile, tiles, found.shape[3], prompt.scale * _BITS,
        heads, prompt.groups, size, width, SIZE=padded(size), VALUES=padded(width),
        SINGLE=prompt.reach.width < GRAIN.value, num_stages=2, **tiling,
    )  # fmt: skip


@triton.jit
def _attend(
    query, keys, values, words, found, counts, unused, out, q_batch, q_head, q_row, k_batch, k_head, k_row,
    v_batch, v_head, v_row, w_batch, w_head, w_tile, o_batch, o_head, o_row, queries, tokens, begin, window,
    tile, tiles, most, scale,
    heads: tl.constexpr, groups: tl.constexpr, size: tl.constexpr, width: tl.constexpr,
    SIZE: tl.constexpr, VALUES: tl.constexpr, SINGLE: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    # The longest rows first, and the heads of a tile, which share keys, together.
    piece, unit = tl.program_id(0) % (QUERIES // ROWS), tl.program_id(0) // (QUERIES // ROWS)
    number, head = tiles - 1 - unit // heads, (unit % heads).to(tl.int64)
    batch = tl.program_id(1).to(tl.int64)
    slots = tl.load(unused + batch)
    start, first, end = place(slots, tile + number, queries, tokens, begin, window)
    if start >= queries:
        return
    row, key = piece * ROWS + tl.arange(0, ROWS), tl.arange(0, KEYS)
    channel, part = tl.arange(0, SIZE), tl.arange(0, VALUES)
    there, real = (start + row < queries)[:, None], (channel < size)[None, :]
    valued = (part < width)[None, :]
    line = (start + row).to(tl.int64)[:, None]
    q = tl.load(
        query + batch * q_batch + head * q_head + line * q_row + channel[None, :],
        mask=there & real,
        other=0.0,
    )
    keys += batch * k_batch + (head // groups) * k_head + slots.to(tl.int64) * k_row
    values += batch * v_batch + (head // groups) * v_head + slots.to(tl.int64) * v_row
    map_row = words + batch * w_batch + head * w_head + number * w_tile
    unit = (batch * heads + head) * tiles + number

    top, total = tl.full([ROWS], float("-inf"), tl.float32), tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, VALUES], tl.float32)
    count = tl.load(counts + unit) * GRAIN
    for at in range(0, bound(count), KEYS):
        entry = at + key
        listed = entry < count
        position = tl.load(found + unit * most + entry // GRAIN, mask=listed, other=0) * GRAIN + entry % GRAIN
        if SINGLE:
            bits = tl.load(map_row + position // WORD, mask=listed, other=0)
            listed &= (bits >> (position % WORD)) & 1 != 0
        position = position.to(tl.int64)[:, None]
        k = tl.load(keys + position * k_row + channel[None, :], mask=listed[:, None] & real, other=0.0)
        v = tl.load(values + position * v_row + part[None, :], mask=listed[:, None] & valued, other=0.0)
        top, total, acc = _added(q, k, v, listed[None, :], scale, top, total, acc)
    for at in range(bound(end), bound(first + QUERIES), KEYS):
        position = at + key
        seen = position[None, :] <= first + row[:, None]
        inside, position = (position < tokens - slots)[:, None], position.to(tl.int64)[:, None]
        k = tl.load(keys + position * k_row + channel[None, :], mask=inside & real, other=0.0)
        v = tl.load(values + position * v_row + part[None, :], mask=inside & valued, other=0.0)
        top, total, acc = _added(q, k, v, seen, scale, top, total, acc)
    written = out + batch * o_batch + head * o_head + line * o_row + part[None, :]
    tl.store(written, acc / total[:, None], mask=there & valued)


@triton.jit
def _added(q, k, v, seen, scale, top, total, acc):
    """A softmax's largest logit, sum and weighted values with these keys among them, in powers of 2."""
    logits = tl.where(seen, product(q, tl.trans(k)) * scale, float("-inf"))
    higher = tl.maximum(top, tl.max(logits, 1))
    weights, shrunk = tl.exp2(logits - higher[:, None]), tl.exp2(top - higher)
    acc = acc * shrunk[:, None] + product(weights.to(v.dtype), v)
    return higher, total * shrunk + tl.sum(weights, 1), acc
