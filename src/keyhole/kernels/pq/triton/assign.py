"""Nearest centroids, in all sub-spaces at once.

Tensor cores multiply at least 16 channels, and sub-spaces may have four. A program therefore takes several of
them, with a matrix of centroids that is zero where a channel is not of a centroid's sub-space: reading points
in whole sectors of memory gains more than the products with zero.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from keyhole.kernels.backend.triton import LEAST, padded, product, rows_first

_TOKENS = 64  # of a program
_COLUMNS = 128  # centroids of all its sub-spaces, at a time
_CHANNELS = 32  # that it multiplies at a time


def assign(points: Tensor, centroids: Tensor, dtype: torch.dtype) -> Tensor:
    """Labels [R, T, M] of points [R, T, M * W] among centroids [R, M, C, W]; ties: the lower label."""
    rows, tokens, _ = points.shape
    _, subspaces, count, width = centroids.shape
    points = rows_first(points)
    labels = torch.empty(rows, tokens, subspaces, dtype=dtype, device=points.device)
    columns = min(padded(count, 2), _COLUMNS)
    spaces = _together(subspaces, width, columns)
    if labels.numel():
        _assign[(triton.cdiv(tokens, _TOKENS), triton.cdiv(subspaces, spaces), rows)](
            points, centroids.contiguous(), labels, points.stride(0), points.stride(1), tokens, subspaces,
            count, width, TILE=_TOKENS, SPACES=spaces, COLUMNS=columns,
            WIDE=min(padded(spaces * width), _CHANNELS), num_warps=4 if spaces * columns < _COLUMNS else 8,
        )  # fmt: skip
    return labels


def _together(subspaces: int, width: int, columns: int) -> int:
    """Sub-spaces of a program, a power of two: as many as fill up the least product, or the columns."""
    fitting = min(triton.next_power_of_2(subspaces), max(1, LEAST // width), max(1, _COLUMNS // columns))
    return 1 << (fitting.bit_length() - 1)


@triton.jit
def _assign(
    points, centroids, labels, row_stride, slot_stride, tokens, subspaces, count: tl.constexpr,
    width: tl.constexpr, TILE: tl.constexpr, SPACES: tl.constexpr, COLUMNS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(2).to(tl.int64)
    first, token = tl.program_id(1) * SPACES, tl.program_id(0) * TILE + tl.arange(0, TILE)
    points += row * row_stride + token.to(tl.int64)[:, None] * slot_stride + first * width
    column = tl.arange(0, SPACES * COLUMNS)
    space, inner = column // COLUMNS, column % COLUMNS
    centroids += (row * subspaces + first + space[None, :]) * count * width
    best = tl.full([TILE, SPACES], float("inf"), tl.float32)
    label = tl.zeros([TILE, SPACES], tl.int32)
    for begin in range(0, count, COLUMNS):
        number = begin + inner
        # Half the squared distance, less what all centroids have in common.
        distance = tl.zeros([TILE, SPACES * COLUMNS], tl.float32)
        norm = tl.zeros([SPACES * COLUMNS], tl.float32)
        for done in range(0, SPACES * width, WIDE):
            channel = done + tl.arange(0, WIDE)
            real = (channel < SPACES * width) & (first * width + channel < subspaces * width)
            x = tl.load(points + channel[None, :], mask=(token < tokens)[:, None] & real[None, :], other=0.0)
            own = real[:, None] & (channel[:, None] // width == space[None, :]) & (number < count)[None, :]
            places = centroids + (number * width)[None, :] + (channel % width)[:, None]
            c = tl.load(places, mask=own, other=0.0).to(tl.float32)
            distance -= product(x.to(tl.float32), c)
            norm += tl.sum(c * c, 0) / 2
        distance += tl.where(number < count, norm, float("inf"))[None, :]
        distance = tl.reshape(distance, [TILE, SPACES, COLUMNS])
        least = tl.min(distance, 2)
        nearest = tl.where(distance == least[:, :, None], tl.arange(0, COLUMNS)[None, None, :], COLUMNS)
        label = tl.where(least < best, begin + tl.min(nearest, 2), label)
        best = tl.minimum(best, least)
    space = first + tl.arange(0, SPACES)[None, :]
    written = labels + (row * tokens + token[:, None]) * subspaces + space
    tl.store(written, label.to(labels.dtype.element_ty), mask=(token < tokens)[:, None] & (space < subspaces))
