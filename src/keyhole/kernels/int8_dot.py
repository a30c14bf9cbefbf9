"""Integer dot products of int8 tiles."""

import torch
from torch import Tensor

from keyhole.kernels.dispatch import use_native
from keyhole.kernels.native import call


def int8_dot(a: Tensor, b: Tensor, *, impl: str = "auto") -> Tensor:
    """Products a @ b^T [..., I, J] (int32) of int8 tensors a [..., I, D] and b [..., J, D]; exact."""
    if a.dtype != torch.int8 or b.dtype != torch.int8:
        raise TypeError(f"a is {a.dtype} and b {b.dtype}, expected torch.int8")
    if a.dim() < 2 or a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-1]:
        raise ValueError(f"b {list(b.shape)} does not fit a {list(a.shape)}")
    if use_native(impl, a, b):
        return _native(a.contiguous(), b.contiguous())
    return (a.double() @ b.double().transpose(-1, -2)).int()


def _native(a: Tensor, b: Tensor) -> Tensor:
    out = torch.empty(*a.shape[:-1], b.shape[-2], dtype=torch.int32)
    batch = a.shape[:-2].numel()
    call(
        "kh_int8_dot",
        a.data_ptr(),
        b.data_ptr(),
        batch,
        a.shape[-2],
        b.shape[-2],
        a.shape[-1],
        out.data_ptr(),
    )
    return out
