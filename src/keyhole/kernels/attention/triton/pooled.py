"""Attention weights gathered to pages: logits with each key read once, log-sum-exps, weights.

Logits lie in memory between the launches, as float32: 8 bytes for each query head, written and read, where
reading a key again takes 128 to 512.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from keyhole.kernels.attention.reference import page_sums
from keyhole.kernels.attention.types import Pooled, Pooling, Span
from keyhole.kernels.backend.triton import LEAST, block_of, bound, capped, padded, products, rows_first

_TILE = 32 << 10  # bytes of the keys that a program reads
_WEIGHTS = 512  # slots of a program that reads weights
_WIDEST = 1 << 10  # slots of a page that one program adds up


def pooled_attention(
    query: Tensor, keys: Tensor, span: Span, how: Pooling, extras: tuple[Tensor | None, Tensor | None],
    table: Tensor | None = None,
) -> Pooled:  # fmt: skip
    """As the operation of that name, where what `span` says of the device is taken as it is."""
    if how.page > _WIDEST:
        scores, shares, lse = pooled_attention(query, keys, span, how._replace(page=1), extras, table)
        return Pooled(page_sums(scores, how.page), page_sums(shares, how.page), lse)
    *bounds, last = span
    span = Span(*(bound.contiguous() for bound in bounds), last)
    kv_heads = keys.shape[1 if table is None else 2]
    logits, parts = _logits_of(query, rows_first(keys), kv_heads, span, how, table)
    lse, totals = _totals_of(parts, how, extras)
    return Pooled(*_pages_of(logits, totals, kv_heads, span, how), lse)


def _logits_of(
    query: Tensor, keys: Tensor, kv_heads: int, span: Span, how: Pooling, table: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Logits [B, H, last], and of pieces of slots [3, B, H, pieces] the greatest and sums of exp(logit)."""
    batch, heads, size = query.shape
    group = heads // kv_heads
    query = query.to(torch.promote_types(query.dtype, keys.dtype)).contiguous()
    tile = max(LEAST, _TILE // (padded(size) * query.element_size()))
    if table is None:
        slots, block_size, strides = keys.shape[2], 0, (*keys.stride()[:3], 0)
    else:
        table, block_size = rows_first(table), keys.shape[1]
        slots, strides = block_size * table.shape[1], (0, *(keys.stride(at) for at in (2, 1, 0)))
    blocks = triton.cdiv(slots, tile)
    logits = torch.empty(batch, heads, span.last, dtype=torch.float32, device=query.device)
    parts = torch.empty(3, batch, heads, blocks, dtype=torch.float32, device=query.device)
    if parts.numel():
        _logits[(blocks, batch * kv_heads)](
            query, keys, span.begin, span.end, logits, parts, *strides, table,
            0 if table is None else table.stride(0), len(keys), slots, span.last, blocks,
            how.scale, how.softcap, how.sharpness, kv_heads, group, size, batch * heads, BLOCK=block_size,
            HEADS=padded(group), SIZE=padded(size), SLOTS=tile,
        )  # fmt: skip
    return logits, parts


def _totals_of(
    parts: Tensor, how: Pooling, extras: tuple[Tensor | None, Tensor | None]
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp [B, H], and the logarithms [2, B, H] of what scores and shares are divided by."""
    _, batch, heads, blocks = parts.shape
    lse, totals = parts.new_empty(batch, heads), parts.new_empty(2, batch, heads)
    logs = [None if each is None else each.float().contiguous() for each in extras]
    if lse.numel():
        _totals[(batch * heads,)](
            parts, *logs, lse, totals, blocks, how.sharpness, batch * heads, BLOCKS=1024
        )
    return lse, totals


def _pages_of(
    logits: Tensor, totals: Tensor, kv_heads: int, span: Span, how: Pooling
) -> tuple[Tensor, Tensor]:
    batch, heads, last = logits.shape
    count = triton.cdiv(last, how.page)
    scores = logits.new_empty(batch, kv_heads if how.per_head else 1, count)
    shares = logits.new_empty(batch, kv_heads, count)
    width = padded(how.page, 1)
    pages = max(1, _WEIGHTS // width)
    if shares.numel():
        _pages[(triton.cdiv(count, pages), batch)](
            logits, totals, span.first, span.stop, scores, shares, last, count, how.page, how.sharpness,
            batch * heads, kv_heads, heads // kv_heads, how.per_head, how.largest, PAGES=pages, WIDTH=width,
        )  # fmt: skip
    return scores, shares


@triton.jit(do_not_specialize=["slots", "last", "blocks"])
def _logits(
    query, keys, begin, end, logits, parts, batch_stride, head_stride, slot_stride, block_stride,
    table, table_stride, held, slots, last, blocks, scale, softcap, sharpness, kv_heads: tl.constexpr,
    group: tl.constexpr, size: tl.constexpr, all_heads, BLOCK: tl.constexpr, HEADS: tl.constexpr,
    SIZE: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    block, row = tl.program_id(0), tl.program_id(1)
    at, head = row // kv_heads, row * group + tl.arange(0, HEADS)
    slot, ours = block * SLOTS + tl.arange(0, SLOTS), tl.arange(0, HEADS) < group
    counts = (slot >= tl.load(begin + at)) & (slot < tl.minimum(tl.load(end + at), slots))
    place = keys + at.to(tl.int64) * batch_stride + (row % kv_heads).to(tl.int64) * head_stride
    if BLOCK:
        within, there = block_of(table + at.to(tl.int64) * table_stride, slot, counts, held, BLOCK)
        place += within * block_stride + (slot % BLOCK).to(tl.int64) * slot_stride
    else:
        place, there = place + slot.to(tl.int64) * slot_stride, counts
    logit = capped(products(query + head * size, place, ours, there, size, SIZE) * scale, softcap)
    logit = tl.where(counts[None, :], logit, float("-inf"))
    written = logits + head.to(tl.int64)[:, None] * last + slot[None, :]
    tl.store(written, logit, mask=ours[:, None] & (slot < last)[None, :])
    top = tl.max(logit, 1)
    over = logit - tl.where(top == float("-inf"), 0.0, top)[:, None]
    part = parts + head.to(tl.int64) * blocks + block
    step = tl.cast(all_heads, tl.int64) * blocks
    tl.store(part, top, mask=ours)
    tl.store(part + step, tl.sum(tl.exp(over), 1), mask=ours)
    tl.store(part + 2 * step, tl.sum(tl.exp(over * sharpness), 1), mask=ours)


@triton.jit(do_not_specialize=["blocks"])
def _totals(
    parts, score_extra, share_extra, lse, totals, blocks, sharpness, all_heads, BLOCKS: tl.constexpr
):  # fmt: skip
    head = tl.program_id(0)
    parts += head.to(tl.int64) * blocks
    step = tl.cast(all_heads, tl.int64) * blocks
    top = tl.full((BLOCKS,), float("-inf"), tl.float32)
    for start in range(0, bound(blocks), BLOCKS):
        block = start + tl.arange(0, BLOCKS)
        top = tl.maximum(top, tl.load(parts + block, mask=block < blocks, other=float("-inf")))
    greatest = tl.max(top, 0)
    greatest = tl.where(greatest == float("-inf"), 0.0, greatest)
    plain, sharp = tl.zeros((BLOCKS,), tl.float32), tl.zeros((BLOCKS,), tl.float32)
    for start in range(0, bound(blocks), BLOCKS):
        block = start + tl.arange(0, BLOCKS)
        under = tl.load(parts + block, mask=block < blocks, other=float("-inf")) - greatest
        plain += tl.exp(under) * tl.load(parts + step + block, mask=block < blocks, other=0.0)
        sharp += tl.exp(under * sharpness) * tl.load(parts + 2 * step + block, mask=block < blocks, other=0.0)
    plain_lse = greatest + tl.log(tl.sum(plain, 0))
    sharp_lse = greatest * sharpness + tl.log(tl.sum(sharp, 0))
    tl.store(lse + head, plain_lse)
    tl.store(totals + head, _with(sharp_lse, score_extra, head))
    tl.store(totals + all_heads + head, _with(plain_lse, share_extra, head))


@triton.jit
def _with(lse, extra, head):
    """The logarithm of both masses; 0 where there is none, so that weights are none too."""
    if extra is not None:
        other = tl.load(extra + head)
        least, greatest = tl.minimum(lse, other), tl.maximum(lse, other)
        least = tl.where(greatest == float("-inf"), greatest, least - greatest)
        lse = greatest + tl.log(1 + tl.exp(least))
    return tl.where(lse == float("-inf"), 0.0, lse)


@triton.jit(do_not_specialize=["last", "count"])
def _pages(
    logits, totals, first, stop, scores, shares, last, count, page, sharpness, all_heads,
    kv_heads: tl.constexpr, group: tl.constexpr, PER_HEAD: tl.constexpr, LARGEST: tl.constexpr,
    PAGES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1)
    number, within = tl.program_id(0) * PAGES + tl.arange(0, PAGES), tl.arange(0, WIDTH)
    slot = number[:, None] * page + within[None, :]
    end = tl.minimum(tl.load(stop + batch), last)
    pooled = (within < page)[None, :] & (slot >= tl.load(first + batch)) & (slot < end)
    votes = tl.zeros((PAGES, WIDTH), tl.float32)
    for kv in range(kv_heads):
        held = tl.zeros((PAGES, WIDTH), tl.float32)
        if PER_HEAD:
            votes = tl.zeros((PAGES, WIDTH), tl.float32)
        for nth in tl.static_range(group):
            head = (batch * kv_heads + kv) * group + nth
            place = logits + head.to(tl.int64) * last + slot
            logit = tl.load(place, mask=pooled, other=float("-inf"))
            held += tl.exp(logit - tl.load(totals + all_heads + head))
            vote = tl.exp(logit * sharpness - tl.load(totals + head))
            votes = tl.maximum(votes, vote, tl.PropagateNan.ALL) if LARGEST else votes + vote
        row = (batch * kv_heads + kv).to(tl.int64) * count + number
        tl.store(shares + row, tl.sum(held, 1) / group, mask=number < count)
        if PER_HEAD:
            tl.store(scores + row, tl.sum(votes, 1) / (1 if LARGEST else group), mask=number < count)
    if not PER_HEAD:
        voted = tl.sum(votes, 1) / (1 if LARGEST else group * kv_heads)
        tl.store(scores + batch.to(tl.int64) * count + number, voted, mask=number < count)
