"""Keys of a prompt as small integers, and the mean key of each block."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from keyhole.kernels.backend.triton import padded
from keyhole.kernels.sale.triton.tiles import CHUNK, ROUNDING, WORD, rounded

LEAST_BYTES = 32  # channels of the least product of bytes


class SmallKeys(NamedTuple):
    """Keys of each KV head less their mean, counted from a row's first token; S >= D is a power of two.

    Attributes:
        centre: the mean, float32 `[B, Hkv, D]`.
        small: int8 `[B, Hkv, N', S]`, N' a multiple of 64; 0 where there is no token or channel.
        steps: what 1 stands for in each run of 64, float32 `[B, Hkv, N' / 64]`.
        means: of each block of 32, in the keys' dtype, `[B, Hkv, N' / 32, D]`.
    """

    centre: Tensor
    small: Tensor
    steps: Tensor
    means: Tensor


def small_keys(keys: Tensor, padding: tuple[int, ...], unused: Tensor) -> SmallKeys:
    """Of keys [B, Hkv, N, D]; a row's first slots, `padding`, and `unused` on the device, do not count."""
    batch, heads, tokens, size = keys.shape
    runs, width = triton.cdiv(tokens, CHUNK.value), padded(size, LEAST_BYTES)
    centre = torch.stack(
        [keys[row, :, slots:].mean(1, dtype=torch.float32) for row, slots in enumerate(padding)]
    )
    found = SmallKeys(
        centre,
        torch.empty(batch, heads, runs * CHUNK.value, width, dtype=torch.int8, device=keys.device),
        torch.empty(batch, heads, runs, dtype=torch.float32, device=keys.device),
        torch.empty(
            batch, heads, runs * (CHUNK.value // WORD.value), size, dtype=keys.dtype, device=keys.device
        ),
    )
    _small_keys[(runs, heads, batch)](
        keys, *found, unused, *keys.stride()[:3], tokens, runs, size,
        SIZE=width, LEVELS=ROUNDING.levels, num_warps=8,
    )  # fmt: skip
    return found


def block_means(rows: Tensor, padding: tuple[int, ...]) -> Tensor:
    """Of each whole block of 32 of these rows [B, Hkv, N, D], counted as for keys: [B, Hkv, N / 32, D]."""
    means = rows.new_empty(*rows.shape[:2], rows.shape[2] // WORD.value, rows.shape[3])
    for row, slots in enumerate(padding):
        whole = (rows.shape[2] - slots) // WORD.value
        blocks = rows[row, :, slots : slots + whole * WORD.value].unflatten(1, (whole, WORD.value))
        means[row, :, :whole] = blocks.mean(2, dtype=torch.float32)
    return means


@triton.jit
def _small_keys(
    keys, centre, small, steps, means, unused, batch_stride, head_stride, row_stride, tokens, runs,
    size: tl.constexpr, SIZE: tl.constexpr, LEVELS: tl.constexpr,
):  # fmt: skip
    run, batch = tl.program_id(0), tl.program_id(2).to(tl.int64)
    kv_head = tl.program_id(1).to(tl.int64)
    head = batch * tl.num_programs(1) + kv_head
    key, channel = tl.arange(0, CHUNK), tl.arange(0, SIZE)
    slot = tl.load(unused + batch) + run * CHUNK + key
    there = (slot < tokens)[:, None] & (channel < size)[None, :]
    rows = keys + batch * batch_stride + kv_head * head_stride + slot.to(tl.int64)[:, None] * row_stride
    x = tl.load(rows + channel[None, :], mask=there, other=0.0).to(tl.float32)
    mean = tl.load(centre + head * size + channel, mask=channel < size, other=0.0)
    shifted = tl.where(there, x - mean[None, :], 0.0)
    step = tl.max(tl.max(tl.abs(shifted), 1), 0) / LEVELS
    step = tl.where(step > 0, step, 1.0)
    place = head * runs + run
    tl.store(steps + place, step)
    tl.store(small + (place * CHUNK + key[:, None]) * SIZE + channel[None, :], rounded(shifted, step))
    block = place * (CHUNK // WORD) + tl.arange(0, CHUNK // WORD)
    sums = tl.sum(tl.reshape(shifted, (CHUNK // WORD, WORD, SIZE)), 1) / WORD
    tl.store(means + block[:, None] * size + channel[None, :], sums, mask=(channel < size)[None, :])
