"""Matrix-vector products that read only the weights an activation needs.

Rows that are skipped are masked, not left out of a list: loads that a mask turns off cost no traffic, and a
list would have to be made, by one more kernel, before the first weight could be read.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from keyhole.kernels.backend.triton import bound

_ROWS, _COLUMNS = 8, 1024  # of a weight's tile: what keeps enough of memory in flight
_SPAN = 512  # columns that a program sums, contiguous in each row
_PROGRAMS = 512  # that keep a GPU busy


def matvec_skip_rows(weight: Tensor, x: Tensor, gate: Tensor) -> Tensor:
    """gate[i] * (weight[i] . x) `[M]` in the dtype of x, of weight [M, N] whose rows are dense."""
    rows, columns = weight.shape
    y = x.new_empty(rows)
    if rows:
        _skip_rows[(triton.cdiv(rows, _ROWS),)](
            weight,
            x.contiguous(),
            _numbers(gate),
            y,
            weight.stride(0),
            rows,
            columns,
            ROWS=_ROWS,
            COLUMNS=_COLUMNS,
        )
    return y


def matvec_skip_columns(weight_t: Tensor, x: Tensor) -> Tensor:
    """The sum of x[i] * weight_t[i], `[N]` in the dtype of x, of weight_t [M, N] whose rows are dense.

    In two launches: sums of some rows each, then their sums, in an order that never changes.
    """
    rows, columns = weight_t.shape
    y = x.new_empty(columns)
    spans = triton.cdiv(columns, _SPAN)
    splits = max(1, min(triton.cdiv(_PROGRAMS, max(spans, 1)), triton.cdiv(rows, 2 * _ROWS)))
    parts = torch.empty(splits, columns, dtype=torch.float32, device=x.device)
    if columns:
        _skip_columns[(spans, splits)](
            weight_t, x.contiguous(), parts, weight_t.stride(0), rows, columns,
            triton.cdiv(rows, splits), ROWS=2 * _ROWS, COLUMNS=_SPAN,
        )  # fmt: skip
        _sums[(triton.cdiv(columns, 32),)](parts, y, splits, columns, PARTS=32, COLUMNS=32)
    return y


def _numbers(gate: Tensor) -> Tensor:
    """The gate, dense; bits as bytes."""
    return (gate.view(torch.uint8) if gate.dtype == torch.bool else gate).contiguous()


@triton.jit
def _skip_rows(
    weight, x, gate, y, row_stride, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    row, column = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    factor = tl.load(gate + row, mask=row < rows, other=0).to(tl.float32)
    read = factor != 0
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    places = weight + row.to(tl.int64)[:, None] * row_stride
    for start in range(0, bound(columns), COLUMNS):
        at = start + column
        inside = at < columns
        w = tl.load(places + at[None, :], mask=read[:, None] & inside[None, :], other=0.0)
        sums += w.to(tl.float32) * tl.load(x + at, mask=inside, other=0.0).to(tl.float32)[None, :]
    total = tl.where(read, factor * tl.sum(sums, 1), 0.0)
    tl.store(y + row, total, mask=row < rows)


@triton.jit
def _skip_columns(
    weight, x, parts, row_stride, rows, columns, each, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    column, split = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS), tl.program_id(1)
    inside = column < columns
    stop = tl.minimum((split + 1) * each, rows)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(bound(split * each), bound(stop), ROWS):
        row = start + tl.arange(0, ROWS)
        factor = tl.load(x + row, mask=row < stop, other=0.0).to(tl.float32)
        read = (factor != 0)[:, None] & inside[None, :]
        w = tl.load(weight + row.to(tl.int64)[:, None] * row_stride + column[None, :], mask=read, other=0.0)
        sums += factor[:, None] * w.to(tl.float32)
    tl.store(parts + split.to(tl.int64) * columns + column, tl.sum(sums, 0), mask=inside)


@triton.jit
def _sums(parts, y, splits, columns, PARTS: tl.constexpr, COLUMNS: tl.constexpr):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    sums = tl.zeros([PARTS, COLUMNS], tl.float32)
    for start in range(0, bound(splits), PARTS):
        split = start + tl.arange(0, PARTS)
        there = (split < splits)[:, None] & (column < columns)[None, :]
        sums += tl.load(
            parts + split.to(tl.int64)[:, None] * columns + column[None, :], mask=there, other=0.0
        )
    tl.store(y + column, tl.sum(sums, 0), mask=column < columns)
