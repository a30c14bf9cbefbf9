"""What an estimate has to exceed, for each query of a prompt, and the queries as small integers."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from keyhole.kernels.backend.triton import bound, product
from keyhole.kernels.sale.triton.keys import SmallKeys
from keyhole.kernels.sale.triton.tiles import QUERIES, ROUNDING, WORD, Prompt, place, rounded


class Limits(NamedTuple):
    """Queries of a piece as small integers, S channels, of U units of each KV head.

    Attributes:
        small: int8 `[B, Hkv, U, 64, S]`; without meaning for units that are not there or leave nothing out.
        least: what a product with small keys, times their step, has to exceed; float32 `[B, Hkv, U, 64]`,
            infinite for queries that are not there, or are not finite.
    """

    small: Tensor
    least: Tensor


def limits(prompt: Prompt, found: SmallKeys, tile: int, tiles: int, spare: int) -> Limits:
    """Of so many tiles from one on, and room for so many units to spare."""
    query, keys = prompt.query, prompt.keys
    batch, heads, _, size = query.shape
    units, wide = tiles * prompt.groups + spare, found.small.shape[3]
    small = torch.empty(
        batch, keys.shape[1], units, QUERIES.value, wide, dtype=torch.int8, device=query.device
    )
    least = torch.full(small.shape[:4], torch.inf, device=query.device)
    tiling = prompt.tiling
    _limits[(tiles * (QUERIES.value // tiling["ROWS"]), heads, batch)](
        query, keys, found.centre, found.means, prompt.tau, prompt.unused, small, least,
        *query.stride()[:3], *keys.stride()[:3], *prompt.lengths, found.means.shape[2], tile, units,
        prompt.scale, prompt.groups, size, SIZE=wide, LEVELS=ROUNDING.levels, POOLED=prompt.reach.pooled,
        **tiling,
    )  # fmt: skip
    return Limits(small, least)


@triton.jit
def _limits(
    query, keys, centre, means, tau, unused, small, least, q_batch, q_head, q_row, k_batch, k_head, k_row,
    queries, tokens, begin, window, blocks, tile, units, scale, groups: tl.constexpr, size: tl.constexpr,
    SIZE: tl.constexpr, LEVELS: tl.constexpr, POOLED: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    head, batch = tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    number, part = tl.program_id(0) // (QUERIES // ROWS), tl.program_id(0) % (QUERIES // ROWS)
    slots = tl.load(unused + batch)
    start, first, end = place(slots, tile + number, queries, tokens, begin, window)
    if (end == 0) | (start >= queries):
        return
    kv_head = batch * (tl.num_programs(1) // groups) + head // groups
    row, key, channel = part * ROWS + tl.arange(0, ROWS), tl.arange(0, KEYS), tl.arange(0, SIZE)
    there, real = start + row < queries, channel < size
    asked = query + batch * q_batch + head * q_head + (start + row).to(tl.int64)[:, None] * q_row
    q = tl.load(asked + channel[None, :], mask=there[:, None] & real[None, :], other=0.0)
    rows = keys + batch * k_batch + (head // groups) * k_head + slots.to(tl.int64) * k_row + channel[None, :]
    x = q.to(tl.float32) * scale
    finite = tl.sum(x - x, 1) == 0
    step = tl.max(tl.abs(x), 1) / LEVELS
    step = tl.where(step > 0, step, 1.0)
    unit = (kv_head * units + number * groups + head % groups) * QUERIES + row
    tl.store(small + unit[:, None] * SIZE + channel[None, :], rounded(x, step[:, None]))
    middle = tl.sum(x * tl.load(centre + kv_head * size + channel, mask=real, other=0.0)[None, :], 1)

    top, total = tl.full([ROWS], float("-inf"), tl.float32), tl.zeros([ROWS], tl.float32)
    for at in range(0, bound(begin), KEYS):
        position = (at + key).to(tl.int64)
        k = tl.load(
            rows + position[:, None] * k_row, mask=(position < begin)[:, None] & real[None, :], other=0.0
        )
        logits = tl.where((position < begin)[None, :], product(q, tl.trans(k)) * scale, float("-inf"))
        top, total = _added(top, total, logits)
    for at in range(bound(end), bound(first + QUERIES), KEYS):
        position = (at + key).to(tl.int64)
        seen = position[None, :] <= first + row[:, None]
        k = tl.load(
            rows + position[:, None] * k_row,
            mask=(position < tokens - slots)[:, None] & real[None, :],
            other=0.0,
        )
        top, total = _added(top, total, tl.where(seen, product(q, tl.trans(k)) * scale, float("-inf")))
    if POOLED:
        for at in range(bound(begin // WORD), bound(end // WORD), KEYS):
            block = at + key
            pooled = block < end // WORD
            k = tl.load(
                means + (kv_head * blocks + block[:, None]) * size + channel[None, :],
                mask=pooled[:, None] & real[None, :], other=0.0,
            )  # fmt: skip
            # A block is as many keys.
            logits = product(q, tl.trans(k)) * scale + middle[:, None] + tl.log(WORD + 0.0)
            top, total = _added(top, total, tl.where(pooled[None, :], logits, float("-inf")))

    wanted = tl.load(tau + head)
    limit = (top + tl.log(total) + tl.log(wanted) - middle) / step
    limit = tl.where((limit == limit) & finite, limit, float("inf"))
    limit = tl.where(wanted == 0, float("-inf"), limit)
    tl.store(least + unit, tl.where(there, limit, float("inf")))


@triton.jit
def _added(top, total, logits):
    """The largest logit of each row, and the sum of exponentials relative to it, with these among them."""
    higher = tl.maximum(top, tl.max(logits, 1))
    return higher, total * tl.exp(top - higher) + tl.sum(tl.exp(logits - higher[:, None]), 1)
