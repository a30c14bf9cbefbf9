"""What kernels of attention over chosen slots share: who reads which, the softmax so far, and the merge.

The slots of a row are split among programs that fill the device whatever the batch. Each leaves attention
over its own, and its log-sum-exp, in a workspace; a second kernel puts them together.

Shapes: R rows, G query heads of a KV head, E size of a value, S selected, P splits of a row.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from keyhole.kernels.backend.triton import EXACT, LEAST, bound, padded, product

_PROGRAMS = 4 * 132  # so many at once hide each other's waits for memory on the largest device
_TILE = 16 << 10  # bytes of keys, and as many of values, that a program waits for at once
_MOST = 64  # slots of a tile
STAGES = 3  # slots are read two tiles ahead, keys and values one
_REGISTERS = 8 << 10  # bytes of queries that four warps hold beside sums and a tile
_TOGETHER = 16  # splits that the merge adds at once


class Splits(NamedTuple):
    """How the slots of a row are shared out.

    Attributes:
        tile: slots that a program holds at once.
        slots: slots of a program, a multiple of `tile`.
        count: P, programs of a row.
    """

    tile: int
    slots: int
    count: int


def splits_of(rows: int, width: int, row_bytes: int) -> Splits:
    """Of `rows` rows of up to `width` slots each, whose keys take `row_bytes` a slot where they are used."""
    tile = min(_MOST, max(LEAST, _TILE // row_bytes))
    tiles = triton.cdiv(width, tile)
    each = max(1, triton.cdiv(tiles * rows, _PROGRAMS))
    return Splits(tile, each * tile, triton.cdiv(tiles, each))


def warps(heads: int, size: int, dtype: torch.dtype) -> int:
    """Of a program for so many query heads of that size: more where their tiles take more registers."""
    return 4 if padded(heads) * padded(size) * dtype.itemsize <= _REGISTERS else 8


class Workspace(NamedTuple):
    """What the programs leave, float32: attention [R, P, G, E], log-sum-exp [R, P, G]."""

    outs: Tensor
    lses: Tensor


def workspace(query: Tensor, splits: Splits, size: int) -> Workspace:
    """Uninitialised; only splits that have slots are written, and only those are merged."""
    shape = (query.shape[0], splits.count, query.shape[1])
    outs = torch.empty(*shape, size, dtype=torch.float32, device=query.device)
    return Workspace(outs, torch.empty(shape, dtype=torch.float32, device=query.device))


def merged(
    parts: Workspace, splits: Splits, width: int, counts: Tensor, sinks: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Attention [R, G, E] and log-sum-exp [R, G] over all splits and, where there are some, sink logits."""
    rows, count, heads, size = parts.outs.shape
    out = torch.empty(rows, heads, size, dtype=dtype, device=counts.device)
    lse = torch.empty(rows, heads, dtype=torch.float32, device=counts.device)
    if out.numel():
        _merged[(rows, heads)](
            *parts, counts, None if sinks is None else sinks.contiguous(), out, lse,
            counts.stride(0), width, splits.slots, count, heads, size,
            SPLITS=padded(count), SIZE=padded(size), TOGETHER=_TOGETHER,
        )  # fmt: skip
    return out, lse


@triton.jit(do_not_specialize=["width", "slots", "splits"])
def _merged(
    outs, lses, counts, sinks, out, lse, counts_stride, width, slots, splits, heads: tl.constexpr,
    size: tl.constexpr, SPLITS: tl.constexpr, SIZE: tl.constexpr, TOGETHER: tl.constexpr,
):  # fmt: skip
    row, head, channel = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, SIZE)
    used = tl.cdiv(used_slots(counts + row * counts_stride, width), slots)
    known, split = lses + row * splits * heads + head, tl.arange(0, SPLITS)
    logs = tl.load(known + split * heads, mask=split < used, other=float("-inf"))
    top = tl.max(logs, 0)
    if sinks is not None:
        sink = tl.load(sinks + row * heads + head).to(tl.float32)
        top = tl.maximum(top, sink)
    top = finite(top)
    total = tl.sum(tl.exp(logs - top), 0)
    if sinks is not None:
        total += tl.exp(sink - top)
    merged = tl.zeros([SIZE], tl.float32)
    for first in range(0, bound(used), TOGETHER):
        at = first + tl.arange(0, TOGETHER)
        weights = tl.exp(tl.load(known + at * heads, mask=at < used, other=float("-inf")) - top)
        places = outs + (row * splits + at[:, None]) * heads * size + head * size + channel[None, :]
        part = tl.load(places, mask=(at < used)[:, None] & (channel < size)[None, :], other=0.0)
        merged += tl.sum(weights[:, None] * part, 0)
    tl.store(out + (row * heads + head) * size + channel, merged / nonzero(total), mask=channel < size)
    tl.store(lse + row * heads + head, top + tl.log(total))


@triton.jit
def queries(query, row, heads: tl.constexpr, size: tl.constexpr, HEADS: tl.constexpr, SIZE: tl.constexpr):
    """The queries [G, D] of a row, of contiguous ones."""
    head, channel = tl.arange(0, HEADS), tl.arange(0, SIZE)
    asked = (head < heads)[:, None] & (channel < size)[None, :]
    return tl.load(query + (row * heads + head[:, None]) * size + channel[None, :], mask=asked, other=0.0)


@triton.jit
def used_slots(count, width):
    """The count at an address, within 0 and the width of the slots."""
    return tl.minimum(tl.maximum(tl.load(count), 0), width).to(tl.int32)


@triton.jit
def finite(top):
    """The greatest logits, 0 where there is none, so that differences from them are numbers."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def nonzero(total):
    """Sums of weights, 1 where nothing was read: what they divide is 0 then."""
    return tl.where(total == 0, 1.0, total)


@triton.jit
def absorbed(top, total, out, logits, values, precision: tl.constexpr = EXACT):
    """The softmax so far, with logits [G, S] and values [S, E] added: greatest logits, sums of weights, sums.

    Logits are -inf, and values 0, where there is no slot.
    """
    higher = tl.maximum(top, tl.max(logits, 1))
    shift = finite(higher)
    weights, kept = tl.exp(logits - shift[:, None]), tl.exp(top - shift)
    out = out * kept[:, None] + product(weights.to(values.dtype), values, precision)
    return higher, total * kept + tl.sum(weights, 1), out


@triton.jit
def leave(outs, lses, place, top, total, out, heads, size, HEADS: tl.constexpr, SIZE: tl.constexpr):
    """Write a split's attention [G, E] and log-sum-exp [G] to its place in the workspace."""
    head, channel = tl.arange(0, HEADS), tl.arange(0, SIZE)
    tl.store(lses + place * heads + head, finite(top) + tl.log(total), mask=head < heads)
    places = outs + (place * heads + head[:, None]) * size + channel[None, :]
    there = (head < heads)[:, None] & (channel < size)[None, :]
    tl.store(places, out / nonzero(total)[:, None], mask=there)
