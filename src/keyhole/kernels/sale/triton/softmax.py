"""A softmax that runs over keys, and over the means of keys, a step at a time, in powers of 2."""

import triton
import triton.language as tl

from keyhole.kernels.backend.triton import product


@triton.jit
def added(logits, v, top, total, acc):
    """A softmax's largest logit, sum and weighted values with these keys among them."""
    higher = tl.maximum(top, tl.max(logits, 1))
    weights, shrunk = tl.exp2(logits - higher[:, None]), tl.exp2(top - higher)
    acc = acc * shrunk[:, None] + product(weights.to(v.dtype), v)
    return higher, total * shrunk + tl.sum(weights, 1), acc


@triton.jit
def added_where_read(
    logits, readers, part, stands, v, top, total, acc, RUN: tl.constexpr, MEANS: tl.constexpr
):
    """The same with those of these keys that a row's part of the tile reads, by a bit for each part.

    With means each run of keys also has the mean of what the part leaves out, which counts as often. Then a
    key stands for so many of its run: what all stand for, less those that are read, is left out.
    """
    kept = (readers[None, :] >> part[:, None]) & 1
    chosen = tl.where(kept != 0, logits, float("-inf"))
    if not MEANS:
        return added(chosen, v, top, total, acc)
    ROWS: tl.constexpr = logits.shape[0]
    RUNS: tl.constexpr = logits.shape[1] // RUN
    # How many are left out, a byte for each part: sums of whole tiles cost more.
    number = tl.sum(tl.reshape(stands * 0x01010101 - (readers * 0x204081 & 0x01010101), (RUNS, RUN)), 1)
    number = (number[None, :] >> (part * 8)[:, None]) & 255
    share = (stands[None, :] - kept).to(tl.float32)
    mean = tl.sum(tl.reshape(logits * share, (ROWS, RUNS, RUN)), 2) / number
    mean = tl.where(number > 0, mean, float("-inf"))
    higher = tl.maximum(top, tl.maximum(tl.max(chosen, 1), tl.max(mean, 1)))
    shrunk, each = tl.exp2(top - higher), tl.exp2(mean - higher[:, None])
    each = tl.reshape(tl.broadcast_to(each[:, :, None], (ROWS, RUNS, RUN)), (ROWS, RUNS * RUN))
    weights = tl.exp2(chosen - higher[:, None]) + share * each
    acc = acc * shrunk[:, None] + product(weights.to(v.dtype), v)
    return higher, total * shrunk + tl.sum(weights, 1), acc


@triton.jit
def fetched(rows, there, column, width):
    """Rows of so many numbers at these addresses, zeros where there are none."""
    shown = there[:, None] & (column < width)[None, :]
    return tl.load(rows[:, None] + column[None, :], mask=shown, other=0.0)
