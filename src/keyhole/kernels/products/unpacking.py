"""Rows of packed matrices as ordinary numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.kernels.backend.dispatch import use_native
from keyhole.kernels.backend.native import TYPES, call
from keyhole.kernels.products.matrix import Matrix, Packing

_WRITTEN = (torch.float32, torch.bfloat16)


def unpack_rows(
    matrix: Matrix, rows: Tensor | range, dtype: torch.dtype = torch.float32, *, impl: str = "auto"
) -> Tensor:
    """Some rows `[R, N]`, by number (int64 `[R]`) or a range; exact in float32, rounded in others."""
    if not matrix.packing.packed:
        return matrix.weights[_index(rows)].to(dtype)
    if use_native(impl, matrix.weights, supported=dtype in _WRITTEN):
        out = torch.empty(len(rows), matrix.columns, dtype=dtype)
        named = None if isinstance(rows, range) else rows.long().contiguous()
        first = rows.start if isinstance(rows, range) else 0
        call(
            "kh_unpack", matrix.address, None if named is None else named.data_ptr(), first, len(rows),
            TYPES[dtype], out.data_ptr(),
        )  # fmt: skip
        return out
    return _reference(matrix, rows).to(dtype)


def _index(rows: Tensor | range) -> Tensor | slice:
    return slice(rows.start, rows.stop) if isinstance(rows, range) else rows


def _reference(matrix: Matrix, rows: Tensor | range) -> Tensor:
    place = torch.arange(rows.start, rows.stop) if isinstance(rows, range) else rows.cpu()
    tile, lane = (place // 16).to(matrix.weights.device), (place % 16).to(matrix.weights.device)
    codes = matrix.weights[tile, :, :, lane].flatten(2)
    if matrix.packing is Packing.INT8:
        numbers = codes.view(torch.int8).float()
    else:
        halves = torch.cat([codes & 15, codes >> 4], dim=-1)
        numbers = halves.float() - (8 if matrix.packing is Packing.INT4 else 0)
    assert matrix.scales is not None
    numbers = numbers * matrix.scales[tile, :, lane].float().unsqueeze(-1)
    if matrix.minima is not None:
        numbers = numbers + matrix.minima[tile, :, lane].float().unsqueeze(-1)
    return numbers.flatten(1)[:, : matrix.columns]
