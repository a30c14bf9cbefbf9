"""Keys rebuilt from coefficients and turned to their positions before they are written, once.

Shapes: B batch, Hkv KV heads, N tokens, S slots, D head size, R rank, P pairs of channels.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from keyhole.kernels.backend.triton import padded, product, rows_first

_SLOTS = 64  # of a program: 2,048 slots of 8 heads make two programs for each multiprocessor of an H100
_RANKS = 32  # coefficients of a key that it multiplies at once


def rebuild_keys(
    coefficients: Tensor, axes: Tensor, mean: Tensor, slots: Tensor, padding: Tensor, frequencies: Tensor, *,
    adjacent: bool,
) -> Tensor:  # fmt: skip
    """As the operation of that name. Axes are rounded to the dtype of the coefficients for tensor cores."""
    batch, heads, width = slots.shape
    size, rank = axes.shape[2:]
    coefficients, slots = rows_first(coefficients), rows_first(slots)
    out = torch.empty(batch, heads, width, size, dtype=coefficients.dtype, device=coefficients.device)
    # Long keys of float32 take more registers than there are.
    tile = _SLOTS if size * out.element_size() <= 512 else _SLOTS // 2
    if out.numel():
        _rebuild[(triton.cdiv(width, tile), batch * heads)](
            coefficients, coefficients.stride(0), coefficients.stride(1), axes.contiguous(),
            mean.contiguous(), slots, slots.stride(0), slots.stride(1), padding.contiguous(), frequencies,
            out, coefficients.shape[1], width, heads, size, rank, PAIRS=len(frequencies), ADJACENT=adjacent,
            HALF=padded(size // 2), RANKS=_RANKS, SLOTS=tile, num_warps=4 if size <= 128 else 8,
        )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["tokens", "width"])
def _rebuild(
    coefficients, batch_stride, token_stride, axes, mean, slots, slots_batch, slots_head, padding,
    frequencies, out, tokens, width, heads, size: tl.constexpr, rank: tl.constexpr, PAIRS: tl.constexpr,
    ADJACENT: tl.constexpr, HALF: tl.constexpr, RANKS: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64)
    batch, head = row // heads, row % heads
    entry = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    places = slots + batch * slots_batch + head * slots_head + entry
    slot = tl.load(places, mask=entry < width, other=-1)
    there = (slot >= 0) & (slot < tokens)
    slot = tl.where(there, slot, 0).to(tl.int64)
    # Channels that no pair has are pairs that do not turn.
    pair = tl.arange(0, HALF)
    paired, turns = pair < size // 2, pair < PAIRS
    if ADJACENT:
        left, right = 2 * pair, 2 * pair + 1
    else:
        left = tl.where(turns, pair, pair + PAIRS)
        right = tl.where(turns, pair + PAIRS, pair + size // 2)
    rows = coefficients + batch * batch_stride + slot * token_stride
    axes, mean = axes + row * size * rank, mean + row * size
    first, second = tl.zeros([SLOTS, HALF], tl.float32), tl.zeros([SLOTS, HALF], tl.float32)
    for start in range(0, rank, RANKS):
        axis = start + tl.arange(0, RANKS)
        known = (axis < rank)[None, :]
        c = tl.load(rows[:, None] + axis[None, :], mask=there[:, None] & known, other=0.0)
        mask = paired[:, None] & known
        a = tl.load(axes + left[:, None] * rank + axis[None, :], mask=mask, other=0.0)
        b = tl.load(axes + right[:, None] * rank + axis[None, :], mask=mask, other=0.0)
        first += product(c, tl.trans(a.to(c.dtype)))
        second += product(c, tl.trans(b.to(c.dtype)))
    first += tl.load(mean + left, mask=paired, other=0.0)[None, :]
    second += tl.load(mean + right, mask=paired, other=0.0)[None, :]
    if PAIRS:
        position = (slot - tl.load(padding + batch)).to(tl.float32)
        frequency = tl.load(frequencies + pair, mask=turns, other=0.0)
        cos, sin = _turn(position[:, None] * frequency[None, :])
        first, second = first * cos - second * sin, second * cos + first * sin
    written = out + (row * width + entry[:, None]) * size
    mask = (entry < width)[:, None] & paired[None, :]
    tl.store(written + left[None, :], first, mask=mask)
    tl.store(written + right[None, :], second, mask=mask)


@triton.jit
def _turn(angle):
    """Cosine and sine of float32 radians, of hundreds of thousands as of few.

    The library's functions take a stack for such; here quarter turns are taken off in float64.
    """
    quarters = tl.floor(angle.to(tl.float64) * (2 / math.pi) + 0.5)
    rest = (angle.to(tl.float64) - quarters * (math.pi / 2)).to(tl.float32)
    square = rest * rest
    # Taylor series, whose errors are below 3e-8 within an eighth of a turn.
    sin = rest * (1 + square * (-1 / 6 + square * (1 / 120 + square * (-1 / 5040 + square / 362880))))
    cos = 1 + square * (-1 / 2 + square * (1 / 24 + square * (-1 / 720 + square / 40320)))
    quadrant = quarters.to(tl.int32) & 3
    swapped = (quadrant & 1) == 1
    sine, cosine = tl.where(swapped, cos, sin), tl.where(swapped, sin, cos)
    sine = tl.where(quadrant >= 2, -sine, sine)
    return tl.where((quadrant == 1) | (quadrant == 2), -cosine, cosine), sine
