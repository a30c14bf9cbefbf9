"""Linear and embedding modules over packed weights, in place of torch's.

Codes and scales are lasting buffers, so a model's identity and copies include them. Scales are held as
integers: `model.to(dtype)` must not round them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from keyhole.kernels.products.matrix import Matrix, Packing
from keyhole.kernels.products.multiply import multiply
from keyhole.kernels.products.unpacking import unpack_rows


class _Packed(nn.Module):
    """Attributes:
    packing: the form of the weights.
    """

    codes: Tensor
    scales: Tensor
    minima: Tensor | None
    bias: Tensor | None

    def __init__(self, matrix: Matrix, dtype: torch.dtype) -> None:
        super().__init__()
        if not matrix.packing.packed or matrix.scales is None:
            raise ValueError(f"a packed module needs a packed matrix, got {matrix.packing.name}")
        self.packing, self._rows, self._columns = matrix.packing, matrix.rows, matrix.columns
        self.register_buffer("codes", matrix.weights)
        self.register_buffer("scales", matrix.scales.view(torch.int16))
        self.register_buffer("minima", None if matrix.minima is None else matrix.minima.view(torch.int16))
        self.register_buffer("bias", matrix.bias)
        # Follows `model.to(dtype)`: what modules without floating-point weights would compute in. A
        # parameter, since transformers asks the first one of a model for dtype and device.
        self.like = nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)
        self._held: tuple[tuple[Any, ...], Matrix] | None = None

    @property
    def matrix(self) -> Matrix:
        """The weights for the native code; another object once they have been moved."""
        parts = (self.codes, self.scales, self.minima, self.bias)
        key = tuple(None if part is None else (part.data_ptr(), part.dtype) for part in parts)
        if self._held is None or self._held[0] != key:
            minima = None if self.minima is None else self.minima.view(torch.float16)
            bias = None if self.bias is None else self.bias.float()
            scales = self.scales.view(torch.float16)
            matrix = Matrix(self.packing, self._rows, self._columns, self.codes, scales, minima, bias)
            self._held = key, matrix
        return self._held[1]

    @property
    def weight(self) -> Tensor:
        """The weights as numbers: a copy, `[M, N]` in the dtype of the model."""
        return unpack_rows(self.matrix, range(self._rows), self.like.dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": None}  # its addresses are those of this process and this object


class PackedLinear(_Packed):
    """`x @ W.T + bias` as `torch.nn.Linear`, without a gradient for the weights.

    Up to 16 rows are multiplied by native code, more by torch with weights that are unpacked in pieces; see
    `keyhole.kernels.products.multiply` for the error.
    """

    def __init__(self, matrix: Matrix, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(matrix, dtype)
        self.in_features, self.out_features = matrix.columns, matrix.rows

    def forward(self, x: Tensor) -> Tensor:
        (y,) = multiply([self.matrix], x.reshape(-1, self.in_features))
        return y.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.packing.name.lower()}"


class PackedEmbedding(_Packed):
    """Rows by number as `torch.nn.Embedding`; each is unpacked exactly when it is looked up."""

    def __init__(self, matrix: Matrix, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(matrix, dtype)
        self.num_embeddings, self.embedding_dim = matrix.rows, matrix.columns

    def forward(self, ids: Tensor) -> Tensor:
        rows = unpack_rows(self.matrix, ids.flatten(), self.like.dtype)
        return rows.view(*ids.shape, self.embedding_dim)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.packing.name.lower()}"


def is_packed(module: nn.Module) -> bool:
    """Whether a module, or one of its parts, holds packed weights."""
    return any(isinstance(part, _Packed) for part in module.modules())


def plain_packing(module: nn.Module) -> Packing | None:
    """The form of a module's own weights, None where they are not packed."""
    return module.packing if isinstance(module, _Packed) else None
