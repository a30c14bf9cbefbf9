"""Matrices of weights: dense, or in groups of 32 columns of int8 or int4 numbers with a scale.

Legend: M rows (outputs), N columns (inputs), T = ceil(M / 16) tiles, G = ceil(N / 32) groups.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

import torch
from torch import Tensor

from keyhole.kernels.backend.signatures import MatrixCall

TILE = 16  # rows whose codes lie interleaved
GROUP = 32  # columns that share a scale


class Packing(IntEnum):
    """Forms of a matrix; native/products.hpp has the same numbers and the layout of packed ones."""

    FLOAT32 = 0
    BFLOAT16 = 1
    INT8 = 2  # scale * code, GGUF's Q8_0
    INT4 = 3  # scale * (code - 8), GGUF's Q4_0
    INT4_MIN = 4  # scale * code + minimum, GGUF's Q4_1

    @property
    def packed(self) -> bool:
        """Whether weights are codes with scales."""
        return self >= Packing.INT8

    @property
    def units(self) -> int:
        """Four-byte pieces of a row's group."""
        return 8 if self is Packing.INT8 else 4


_DENSE = {torch.float32: Packing.FLOAT32, torch.bfloat16: Packing.BFLOAT16}


@dataclass(frozen=True, eq=False)
class Matrix:
    """`[M, N]` weights.

    Attributes:
        weights: of dense forms `[M, N]` with contiguous rows; of packed ones uint8 `[T, G, units, 16, 4]`.
        scales: float16 `[T, G, 16]` of packed forms.
        minima: the same, of INT4_MIN.
        bias: float32 `[M]`, which is added to products.
    """

    packing: Packing
    rows: int
    columns: int
    weights: Tensor
    scales: Tensor | None = None
    minima: Tensor | None = None
    bias: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """What a product reads of it."""
        parts = (self.weights, self.scales, self.minima, self.bias)
        return sum(part.nbytes for part in parts if part is not None)

    @property
    def address(self) -> int:
        """Of the native struct, which lives as long as this object; its tensors may not be moved."""
        return ctypes.addressof(self._call)

    @cached_property
    def _call(self) -> MatrixCall:
        def at(tensor: Tensor | None) -> int | None:
            return None if tensor is None else tensor.data_ptr()

        stride = 0 if self.packing.packed else self.weights.stride(0)
        return MatrixCall(
            self.packing, self.rows, self.columns, at(self.weights), stride, at(self.scales), at(self.minima),
            at(self.bias),
        )  # fmt: skip


def dense(weight: Tensor, bias: Tensor | None = None) -> Matrix:
    """A matrix that shares memory with a float32 or bfloat16 weight `[M, N]`.

    Raises:
        ValueError: another dtype, or rows that are not contiguous.
    """
    if weight.dim() != 2 or weight.dtype not in _DENSE or weight.stride(1) != 1:
        raise ValueError(
            f"a dense matrix is float32 or bfloat16 [M, N] with contiguous rows, got {weight.dtype} "
            f"{list(weight.shape)} with strides {weight.stride()}"
        )
    rows, columns = weight.shape
    return Matrix(_DENSE[weight.dtype], rows, columns, weight, bias=None if bias is None else bias.float())
