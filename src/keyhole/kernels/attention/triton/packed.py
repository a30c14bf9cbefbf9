"""Attention over chosen slots of keys and values that are held as codes, which become numbers in registers.

Shapes: R rows (batch x KV heads), G query heads of a KV head, D and E size of keys and values, S selected,
n groups of g tokens, W bytes of a token's codes.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from keyhole.kernels.attention.reference import Attended
from keyhole.kernels.attention.triton.tiles import (
    STAGES,
    absorbed,
    leave,
    merged,
    queries,
    splits_of,
    used_slots,
    warps,
    workspace,
)
from keyhole.kernels.attention.types import Codes, Layout
from keyhole.kernels.backend.triton import bound, capped, padded, product, rows_first


class Held(NamedTuple):
    """A tensor [B, Hkv, n, ...] and its strides by batch row, KV head, group and token of a group."""

    data: Tensor
    batch: int
    head: int
    group: int
    token: int


class Side(NamedTuple):
    """Keys or values: codes, and the ranges that they lie in."""

    codes: Held
    scale: Held
    low: Held


def packed_attention(
    query: Tensor, keys: Codes, values: Codes, layout: Layout, slots: Tensor, counts: Tensor, *, scale: float,
    softcap: float | None,
) -> Attended:  # fmt: skip
    """As the operation of that name.

    Codes become float32, of which 11 bits count where queries are halves: those of bfloat16 would blur codes.
    """
    rows, heads, size = query.shape
    width, inputs = slots.shape[1], query.float().contiguous()
    _, kv_heads, groups, tokens = keys.codes.shape[:4]
    splits = splits_of(rows, width, padded(size) * inputs.element_size())
    parts = workspace(query, splits, layout.values)
    if parts.lses.numel():
        sides = (
            Side(_by_token(keys.codes), _by_channel(keys.scale), _by_channel(keys.low)),
            Side(*map(_by_token, values)),
        )
        _parts[(rows, splits.count)](
            inputs, *sides, slots, slots.stride(0), slots.stride(1), counts, counts.stride(0), *parts, width,
            groups * tokens, kv_heads, scale, softcap, splits.slots, heads, size, layout.values,
            TOKENS=tokens, BITS=layout.bits, HEADS=padded(heads), SIZE=padded(size),
            VALUE=padded(layout.values), TILE=splits.tile,
            PRECISION="tf32x3" if query.dtype == torch.float32 else "tf32", num_stages=STAGES,
            num_warps=warps(heads, max(layout[1:]), inputs.dtype),
        )  # fmt: skip
    return Attended(*merged(parts, splits, width, counts, None, query.dtype))


def _by_token(part: Tensor) -> Held:
    """Codes [B, Hkv, n, g, W] or ranges [B, Hkv, n, g]."""
    part = rows_first(part) if part.dim() == 5 else part
    return Held(part, *part.stride()[:4])


def _by_channel(part: Tensor) -> Held:
    """Ranges [B, Hkv, n, D], which all tokens of a group have in common."""
    part = rows_first(part)
    return Held(part, *part.stride()[:3], 0)


@triton.jit(do_not_specialize=["width", "capacity", "each"])
def _parts(
    query, keys, values, slots, slots_row, slots_stride, counts, counts_stride, outs, lses, width, capacity,
    kv_heads, scale, softcap, each, heads: tl.constexpr, size: tl.constexpr, value_size: tl.constexpr,
    TOKENS: tl.constexpr, BITS: tl.constexpr, HEADS: tl.constexpr, SIZE: tl.constexpr, VALUE: tl.constexpr,
    TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    count, first = used_slots(counts + row * counts_stride, width), split * each
    if first >= count:
        return
    channel, q = tl.arange(0, SIZE), queries(query, row, heads, size, HEADS, SIZE)
    top = tl.full([HEADS], float("-inf"), tl.float32)
    total, out = tl.zeros([HEADS], tl.float32), tl.zeros([HEADS, VALUE], tl.float32)
    for start in range(bound(first), bound(tl.minimum(first + each, count)), TILE):
        entry = start + tl.arange(0, TILE)
        slot = tl.load(slots + row * slots_row + entry * slots_stride, mask=entry < count, other=-1)
        there = (slot >= 0) & (slot < capacity)
        slot = tl.where(there, slot, 0).to(tl.int64)
        place = row // kv_heads, row % kv_heads, slot // TOKENS, slot % TOKENS
        ranged = there[:, None] & (channel < size)[None, :]
        k_scale = tl.load(_at(keys.scale, *place)[:, None] + channel[None, :], mask=ranged, other=0.0)
        k_low = tl.load(_at(keys.low, *place)[:, None] + channel[None, :], mask=ranged, other=0.0)
        k = k_low + k_scale * _codes(keys.codes, place, there, size, BITS, SIZE)
        logits = capped(product(q, tl.trans(k), PRECISION) * scale, softcap)
        v_scale = tl.load(_at(values.scale, *place), mask=there, other=0.0)[:, None]
        v_low = tl.load(_at(values.low, *place), mask=there, other=0.0)[:, None]
        v = v_low + v_scale * _codes(values.codes, place, there, value_size, BITS, VALUE)
        logits = tl.where(there[None, :], logits, float("-inf"))
        top, total, out = absorbed(top, total, out, logits, v, PRECISION)
    leave(outs, lses, row * tl.num_programs(1) + split, top, total, out, heads, value_size, HEADS, VALUE)


@triton.jit
def _at(held, batch, head, group, token):
    """Addresses [S] of the first number of each slot."""
    return held.data + batch * held.batch + head * held.head + group * held.group + token * held.token


@triton.jit
def _codes(held, place, there, size: tl.constexpr, BITS: tl.constexpr, SIZE: tl.constexpr):
    """Codes [S, D] of slots as float32; beyond `size` and of slots that are not there they mean nothing."""
    base = _at(held, *place)[:, None]
    if BITS == 8 or BITS == 4:
        byte = tl.arange(0, SIZE * BITS // 8)
        codes = tl.load(
            base + byte[None, :], mask=there[:, None] & (byte < tl.cdiv(size * BITS, 8))[None, :], other=0
        )
        if BITS == 4:
            codes = tl.interleave(codes & 15, codes >> 4)
        return codes.to(tl.float32)
    # A code of 3 bits may begin in one byte and end in the next.
    bit = tl.arange(0, SIZE) * BITS
    byte, last = bit // 8, (bit + BITS - 1) // 8
    inside = there[:, None] & (bit < size * BITS)[None, :]
    low = tl.load(base + byte[None, :], mask=inside, other=0).to(tl.int32)
    high = tl.load(base + last[None, :], mask=inside, other=0).to(tl.int32)
    codes = low >> (bit % 8)[None, :]
    codes = tl.where((last > byte)[None, :], codes | high << (8 - bit % 8)[None, :], codes)
    return (codes & (1 << BITS) - 1).to(tl.float32)
