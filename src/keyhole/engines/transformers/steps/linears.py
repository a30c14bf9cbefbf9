"""Projections of a model as matrices that share its memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from keyhole.engines.transformers.sparse_ffn.obstacles import linear_obstacle
from keyhole.kernels.decoder.types import Linear
from keyhole.kernels.products.matrix import Matrix, dense

_DTYPES = (torch.float32, torch.bfloat16)
_PLAIN = (nn.Parameter, Tensor)  # subclasses compute something of their own


class NotUnderstoodError(Exception):
    """Why a model's steps are left to its own modules; never shown to a caller."""


def linear(module: nn.Module) -> Linear:
    """A projection.

    Raises:
        NotUnderstoodError: it is no plain one, or not in memory as this can read it.
    """
    held = getattr(module, "matrix", None)
    if isinstance(held, Matrix):
        return Linear(held)
    weight = _dense_weight(module)
    return Linear(dense(weight), _bias(module))


class LinearOf:
    """`linear` of one module, step after step: made again only when its weights are others."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._held: tuple[list[Any], Linear] | None = None

    def __call__(self) -> Linear:
        """The projection as it is now; raises as `linear`."""
        if isinstance(getattr(self._module, "matrix", None), Matrix):
            return linear(self._module)
        tensors = self._module._parameters.get("weight"), self._module._parameters.get("bias")
        seen = [
            None if each is None else (id(each), each.data_ptr(), each.dtype, each.shape) for each in tensors
        ]
        obstacle = linear_obstacle(self._module)
        if self._held is None or self._held[0] != seen or obstacle is not None:
            self._held = seen, linear(self._module)
        return self._held[1]


def linear_parts(module: nn.Module, rows: tuple[int, ...]) -> list[Linear]:
    """A projection whose outputs are several, of so many rows each; as `linear`."""
    weight, bias = _dense_weight(module), _bias(module)
    biases = [None] * len(rows) if bias is None else bias.split(rows)
    return [Linear(dense(each), own) for each, own in zip(weight.split(rows), biases, strict=True)]


def weight_of(module: Any) -> Tensor | None:
    """The weight of a norm.

    Raises:
        NotUnderstoodError: it is computed from others, or of a dtype or on a device that this cannot read.
    """
    return _numbers(type(module).__name__, module._parameters["weight"])


def _dense_weight(module: nn.Module) -> Tensor:
    obstacle = linear_obstacle(module)
    if obstacle is not None:
        raise NotUnderstoodError(f"a projection{obstacle}")
    weight = _numbers("a projection", module._parameters["weight"])
    if weight.dim() != 2 or weight.stride(1) != 1:
        raise NotUnderstoodError("the weight of a projection is transposed in memory")
    return weight


def _bias(module: nn.Module) -> Tensor | None:
    bias = module._parameters.get("bias")
    return None if bias is None else _numbers("a bias", bias)


def _numbers(what: str, tensor: Tensor | None) -> Tensor:
    if tensor is None or type(tensor) not in _PLAIN:
        raise NotUnderstoodError(f"the weight of {what} is a {type(tensor).__name__}")
    if tensor.dtype not in _DTYPES or not tensor.is_cpu:
        raise NotUnderstoodError(
            f"weights are {tensor.dtype} on {tensor.device}; native code reads float32 and bfloat16 on CPUs"
        )
    return tensor.detach()
