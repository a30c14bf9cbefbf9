"""Exact attention of a prompt's tiles over the keys they read, and to the means of what they leave out."""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from keyhole.kernels.backend.triton import bound, padded, product
from keyhole.kernels.sale.triton.lists import Lists
from keyhole.kernels.sale.triton.softmax import added, added_where_read, fetched
from keyhole.kernels.sale.triton.tiles import ALL, FEW, QUERIES, READERS, WORD, Prompt, place

_BITS = 1.4426950408889634  # of a factor e


def attend(prompt: Prompt, listed: Lists, means: Sequence[Tensor | None], tile: int, out: Tensor) -> None:
    """Fill out [B, H, Q, Dv] for tiles from one on, by lists of what they read.

    Without means of blocks' keys and values what is left out counts for nothing.
    """
    query, keys, values = prompt.query, prompt.keys, prompt.values
    batch, heads, tiles, blocks = listed.many.shape
    size, width = query.shape[3], values.shape[3]
    tiling = prompt.tiling
    _attend[(tiles * heads * (QUERIES.value // tiling["ROWS"]), batch)](
        query, keys, values, *means, *listed, prompt.unused, out,
        *query.stride()[:3], *keys.stride()[:3], *values.stride()[:3], *out.stride()[:3],
        *prompt.lengths, tile, tiles, blocks, keys.shape[2] // WORD.value, prompt.scale * _BITS,
        heads, prompt.groups, size, width, SIZE=padded(size), VALUES=padded(width), SHARE=prompt.reach.rows,
        num_stages=2, **tiling,
    )  # fmt: skip


@triton.jit
def _attend(
    query, keys, values, key_means, value_means, many, readers, few, none, counts, unused, out, q_batch,
    q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, o_batch, o_head, o_row, queries, tokens,
    begin, window, tile, tiles, most, blocks, scale, heads: tl.constexpr, groups: tl.constexpr,
    size: tl.constexpr, width: tl.constexpr, SIZE: tl.constexpr, VALUES: tl.constexpr, SHARE: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    # The longest rows first, and the heads of a tile, which share keys, together.
    piece, unit = tl.program_id(0) % (QUERIES // ROWS), tl.program_id(0) // (QUERIES // ROWS)
    number, head = tiles - 1 - unit // heads, (unit % heads).to(tl.int64)
    batch = tl.program_id(1).to(tl.int64)
    slots = tl.load(unused + batch)
    start, first, end = place(slots, tile + number, queries, tokens, begin, window)
    if start >= queries:
        return
    MEANS: tl.constexpr = value_means is not None
    row, key = piece * ROWS + tl.arange(0, ROWS), tl.arange(0, KEYS)
    part, there, line = row // SHARE, start + row < queries, (start + row).to(tl.int64)
    channel, column = tl.arange(0, SIZE), tl.arange(0, VALUES)
    q = fetched(query + batch * q_batch + head * q_head + line * q_row, there, channel, size)
    keys += batch * k_batch + (head // groups) * k_head + slots.to(tl.int64) * k_row
    values += batch * v_batch + (head // groups) * v_head + slots.to(tl.int64) * v_row
    unit = (batch * heads + head) * tiles + number
    many, readers, few = many + unit * most, readers + unit * most * READERS, few + unit * most * FEW
    none, counts = none + unit * most, counts + unit * 3
    if MEANS:
        kv_head = batch * (heads // groups) + head // groups
        key_means += kv_head * blocks * size
        value_means += kv_head * blocks * width

    top, total = tl.full([ROWS], float("-inf"), tl.float32), tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, VALUES], tl.float32)
    # Each row sees a key in the first of these steps.
    for at in range(bound(end), bound(first + QUERIES), KEYS):
        position = at + key
        inside, seen = position < tokens - slots, position[None, :] <= first + row[:, None]
        k = fetched(keys + position.to(tl.int64) * k_row, inside, channel, size)
        v = fetched(values + position.to(tl.int64) * v_row, inside, column, width)
        logits = tl.where(seen, product(q, tl.trans(k)) * scale, float("-inf"))
        top, total, acc = added(logits, v, top, total, acc)

    count = tl.load(counts) * WORD
    for at in range(0, bound(count), KEYS):
        entry = at + key
        listed = entry < count
        position = tl.load(many + entry // WORD, mask=listed, other=0) * WORD + entry % WORD
        who = tl.load(readers + entry // (WORD // READERS), mask=listed, other=0)
        who = (who >> (entry % (WORD // READERS) * READERS)) & ALL
        needed = listed if MEANS else who != 0
        k = fetched(keys + position.to(tl.int64) * k_row, needed, channel, size)
        v = fetched(values + position.to(tl.int64) * v_row, needed, column, width)
        logits, stands = product(q, tl.trans(k)) * scale, listed.to(tl.int32)
        top, total, acc = added_where_read(logits, who, part, stands, v, top, total, acc, WORD, MEANS)

    count = tl.load(counts + 1) * FEW
    for at in range(0, bound(count), KEYS):
        entry = at + key
        found = tl.load(few + entry, mask=entry < count, other=-1)
        listed, position = found >= 0, found >> READERS
        k_rows, v_rows = keys + position.to(tl.int64) * k_row, values + position.to(tl.int64) * v_row
        mean = listed & (entry % FEW == 0)
        if MEANS:
            block = (position // WORD).to(tl.int64)
            k_rows = tl.where(mean, key_means + block * size, k_rows)
            v_rows = tl.where(mean, value_means + block * width, v_rows)
        k, v = fetched(k_rows, listed, channel, size), fetched(v_rows, listed, column, width)
        logits, stands = product(q, tl.trans(k)) * scale, mean.to(tl.int32) * WORD
        who = tl.where(listed, found & ALL, 0)
        top, total, acc = added_where_read(logits, who, part, stands, v, top, total, acc, FEW, MEANS)

    if MEANS:
        count = tl.load(counts + 2)
        for at in range(0, bound(count), KEYS):
            listed = at + key < count
            block = tl.load(none + at + key, mask=listed, other=0).to(tl.int64)
            k = fetched(key_means + block * size, listed, channel, size)
            v = fetched(value_means + block * width, listed, column, width)
            # A block is as many keys.
            logits = product(q, tl.trans(k)) * scale + tl.log2(WORD + 0.0)
            top, total, acc = added(tl.where(listed[None, :], logits, float("-inf")), v, top, total, acc)
    written = out + batch * o_batch + head * o_head + line * o_row
    shown = there[:, None] & (column < width)[None, :]
    tl.store(written[:, None] + column[None, :], acc / total[:, None], mask=shown)
