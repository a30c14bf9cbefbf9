"""Products of matrices in any form with vectors.

Legend: M rows, N columns of a matrix, B vectors.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from keyhole.kernels.backend.dispatch import use_native
from keyhole.kernels.backend.native import call
from keyhole.kernels.products.matrix import Matrix
from keyhole.kernels.products.unpacking import unpack_rows

VECTORS = 16  # most vectors of a native product
_PIECE = 4 << 20  # weights that are unpacked at once


def multiply(matrices: Sequence[Matrix], x: Tensor, *, impl: str = "auto") -> list[Tensor]:
    """Products `x @ W.T + bias` of matrices `[M_k, N]` with the same vectors `x [B, N]`: `[B, M_k]` each.

    Up to 16 vectors on a CPU are multiplied by native code, accumulated in float32; each gives the same alone
    as together. Packed matrices take them rounded to int8 in groups of 32: the error of row m is at most
    `sum over groups of max|x| / 254 * sum|W[m]|`, beside rounding of float32 sums. More vectors are
    multiplied by torch, with rows that are unpacked in pieces. Results have the dtype of x.
    """
    if x.dim() != 2 or not matrices or any(x.shape[1] != matrix.columns for matrix in matrices):
        shapes = [[matrix.rows, matrix.columns] for matrix in matrices]
        raise ValueError(f"x {list(x.shape)} does not fit matrices {shapes}; x is [B, N] of [M, N]")
    held = [matrix.weights for matrix in matrices]
    if use_native(impl, x, *held, supported=0 < len(x) <= VECTORS and not x.requires_grad):
        return _native(matrices, x)
    return [_by_torch(matrix, x, impl) for matrix in matrices]


def _native(matrices: Sequence[Matrix], x: Tensor) -> list[Tensor]:
    inputs = x.float().contiguous()
    found = [torch.empty(len(x), matrix.rows) for matrix in matrices]
    many = ctypes.c_void_p * len(matrices)
    structs, outs = many(*(m.address for m in matrices)), many(*(y.data_ptr() for y in found))
    call("kh_multiply", structs, len(matrices), inputs.data_ptr(), inputs.shape[1], len(x), outs)
    return [y.to(x.dtype) for y in found]


def _by_torch(matrix: Matrix, x: Tensor, impl: str) -> Tensor:
    if not matrix.packing.packed:
        y = F.linear(x, matrix.weights.to(x.dtype))
    else:
        step = max(1, _PIECE // matrix.columns)
        edges = [*range(0, matrix.rows, step), matrix.rows]
        pieces = (unpack_rows(matrix, range(a, b), x.dtype, impl=impl) for a, b in pairwise(edges))
        parts = [F.linear(x, piece) for piece in pieces]
        y = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
    return y if matrix.bias is None else y + matrix.bias.to(x.dtype)
