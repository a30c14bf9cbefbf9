"""Attention over chosen slots of keys and values, contiguous or in blocks; of blocks also over all slots.

Shapes: R rows (batch x KV heads), G query heads of a KV head, D and E size of keys and values, S selected.
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
from keyhole.kernels.backend.triton import block_of, bound, capped, padded, product, rows_first


class Side(NamedTuple):
    """Keys or values; strides in elements of rows (KV heads where there are blocks), slots and blocks."""

    data: Tensor
    row: int
    slot: int
    block: int
    scales: Tensor | None
    scale_row: int
    scale_slot: int
    scale_block: int


class Blocks(NamedTuple):
    """The block table, int32 or int64 [B, width], its stride, KV heads of a request, blocks there are."""

    table: Tensor
    stride: int
    heads: int
    count: int


def gather_attention(
    query: Tensor, keys: Tensor, values: Tensor, slots: Tensor, counts: Tensor, *, scale: float,
    softcap: float | None, sink_logits: Tensor | None, key_scales: Tensor | None,
    value_scales: Tensor | None, with_logits: bool,
) -> Attended:  # fmt: skip
    """As the operation of that name."""
    keys, values = rows_first(keys), rows_first(values)
    sides = [_side(keys, key_scales, (0, 1)), _side(values, value_scales, (0, 1))]
    logits = None
    if with_logits:
        logits = torch.full((*query.shape[:2], slots.shape[1]), -torch.inf, device=query.device)
    return _attend(
        query, *sides, None, 0, keys.shape[1], slots, counts, scale, softcap, sink_logits, logits
    )  # fmt: skip


def paged_gather_attention(
    query: Tensor, keys: Tensor, values: Tensor, block_table: Tensor, slots: Tensor | None, counts: Tensor,
    *, scale: float, softcap: float | None, sink_logits: Tensor | None, key_scales: Tensor | None,
    value_scales: Tensor | None,
) -> Attended:  # fmt: skip
    """As the operation of that name; without slots a row reads the first `counts` of its table."""
    keys, values, table = rows_first(keys), rows_first(values), rows_first(block_table)
    sides = [_side(keys, key_scales, (2, 1, 0)), _side(values, value_scales, (2, 1, 0))]
    blocks = Blocks(table, table.stride(0), keys.shape[2], keys.shape[0])
    page = keys.shape[1]
    return _attend(
        query, *sides, blocks, page, page * table.shape[1], slots, counts, scale, softcap, sink_logits, None
    )


def _side(source: Tensor, scales: Tensor | None, order: tuple[int, ...]) -> Side:
    """With strides of the dimensions named: of rows, of slots and, where there are any, of blocks."""
    strides = [*(source.stride(at) for at in order), 0][:3]
    scale_strides = [0, 0, 0] if scales is None else [*(scales.stride(at) for at in order), 0][:3]
    return Side(source, *strides, scales, *scale_strides)


def _attend(
    query: Tensor, keys: Side, values: Side, blocks: Blocks | None, page: int, capacity: int,
    slots: Tensor | None, counts: Tensor, scale: float, softcap: float | None, sink_logits: Tensor | None,
    logits: Tensor | None,
) -> Attended:  # fmt: skip
    rows, heads, size = query.shape
    width, strides = (capacity, (0, 0)) if slots is None else (slots.shape[1], slots.stride())
    value_size = values.data.shape[-1]
    dtype = query.dtype
    for side in (keys, values):
        # In the finest of all, so that nothing is lost.
        dtype = torch.promote_types(dtype, side.data.dtype)
    splits = splits_of(rows, width, padded(size) * dtype.itemsize)
    parts = workspace(query, splits, value_size)
    if parts.lses.numel():
        _parts[(rows, splits.count)](
            query.to(dtype).contiguous(), keys, values, blocks, slots, *strides, counts,
            counts.stride(0), logits, *parts, width, capacity, scale, softcap,
            splits.slots, heads, size, value_size, PAGE=page, HEADS=padded(heads), SIZE=padded(size),
            VALUE=padded(value_size), TILE=splits.tile, num_stages=STAGES,
            num_warps=warps(heads, max(size, value_size), dtype),
        )  # fmt: skip
    out, lse = merged(parts, splits, width, counts, sink_logits, query.dtype)
    return Attended(out, lse, logits)


@triton.jit(do_not_specialize=["width", "capacity", "each"])
def _parts(
    query, keys, values, blocks, slots, slots_row, slots_stride, counts, counts_stride, kept_logits, outs,
    lses, width, capacity, scale, softcap, each, heads: tl.constexpr, size: tl.constexpr,
    value_size: tl.constexpr, PAGE: tl.constexpr, HEADS: tl.constexpr, SIZE: tl.constexpr,
    VALUE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    count, first = used_slots(counts + row * counts_stride, width), split * each
    if first >= count:
        return
    head, q = tl.arange(0, HEADS), queries(query, row, heads, size, HEADS, SIZE)
    top = tl.full([HEADS], float("-inf"), tl.float32)
    total, out = tl.zeros([HEADS], tl.float32), tl.zeros([HEADS, VALUE], tl.float32)
    for start in range(bound(first), bound(tl.minimum(first + each, count)), TILE):
        entry = start + tl.arange(0, TILE)
        if slots is None:
            slot = tl.where(entry < count, entry, -1)
        else:
            slot = tl.load(slots + row * slots_row + entry * slots_stride, mask=entry < count, other=-1)
        place, slot, block, there = _placed(row, slot, capacity, blocks, PAGE)
        k = _read(keys, place, slot, block, there, size, SIZE)
        v = _read(values, place, slot, block, there, value_size, VALUE)
        logits = product(q, tl.trans(k.to(q.dtype))) * scale
        if keys.scales is not None:
            logits *= _scales(keys, place, slot, block, there)[None, :]
        if values.scales is not None:
            v = v.to(tl.float32) * _scales(values, place, slot, block, there)[:, None]
        logits = tl.where(there[None, :], capped(logits, softcap), float("-inf"))
        if kept_logits is not None:
            written = kept_logits + (row * heads + head[:, None]) * width + entry[None, :]
            tl.store(written, logits, mask=(head < heads)[:, None] & (entry < count)[None, :])
        top, total, out = absorbed(top, total, out, logits, v.to(q.dtype))
    leave(outs, lses, row * tl.num_programs(1) + split, top, total, out, heads, value_size, HEADS, VALUE)


@triton.jit
def _placed(row, slot, capacity, blocks, PAGE: tl.constexpr):
    """Row, slot and block in which a row's slots [S] lie (int64), and whether they are there at all."""
    there = (slot >= 0) & (slot < capacity)
    slot, block = tl.where(there, slot, 0).to(tl.int64), 0
    if PAGE:
        table = blocks.table + (row // blocks.heads) * blocks.stride
        block, there = block_of(table, slot, there, blocks.count, PAGE)
        row, slot = row % blocks.heads, slot % PAGE
    return row, slot, block, there


@triton.jit
def _read(side, row, slot, block, there, size: tl.constexpr, SIZE: tl.constexpr):
    """Numbers [S, D] of the slots that are there, 0 of others."""
    channel = tl.arange(0, SIZE)
    places = side.data + row * side.row + block * side.block + slot * side.slot
    mask = there[:, None] & (channel < size)[None, :]
    return tl.load(places[:, None] + channel[None, :], mask=mask, other=0)


@triton.jit
def _scales(side, row, slot, block, there):
    places = side.scales + row * side.scale_row + block * side.scale_block + slot * side.scale_slot
    return tl.load(places, mask=there, other=0.0)
