"""Matrix-vector products that read only the weights an activation needs."""

import torch
from torch import Tensor

from keyhole.kernels.backend.dispatch import use_native, use_triton
from keyhole.kernels.backend.native import FLOATS, TYPES, call

_SUPPORTED = (torch.float32, torch.bfloat16)


def matvec_skips(weight: Tensor) -> bool:
    """Whether there is native or Triton code that reads parts of this weight; else they would be copied."""
    return use_native("auto", weight, supported=_native_weight(weight)) or use_triton(
        "auto", weight, supported=_triton_weight(weight)
    )


def matvec_skip_rows(weight: Tensor, x: Tensor, gate: Tensor, *, impl: str = "auto") -> Tensor:
    """y[i] = gate[i] * (weight[i] . x), reading no row where gate[i] is 0.

    weight [M, N], x [N], gate [M]; result [M] in the dtype of x, accumulated in float32.
    """
    if weight.dim() != 2 or x.shape != weight.shape[1:] or gate.shape != weight.shape[:1]:
        raise ValueError(
            f"x {list(x.shape)} and gate {list(gate.shape)} do not fit weight {list(weight.shape)}"
        )
    if use_native(impl, weight, x, gate, supported=_native_weight(weight)):
        factors, inputs = gate.float().contiguous(), x.float().contiguous()
        y = torch.empty(weight.shape[0], dtype=torch.float32)
        call(
            "kh_matvec_skip_rows", weight.data_ptr(), TYPES[weight.dtype], weight.stride(0),
            inputs.data_ptr(), factors.data_ptr(), *weight.shape, y.data_ptr(),
        )  # fmt: skip
        return y.to(x.dtype)
    if use_triton(impl, weight, x, gate, supported=_triton_weight(weight)):
        from keyhole.kernels.ffn.triton.matvec import matvec_skip_rows as on_gpu

        return on_gpu(weight, x, gate)
    active = gate.nonzero()[:, 0]
    y = x.new_zeros(weight.shape[0])
    y[active] = (gate[active].float() * (weight[active].float() @ x.float())).to(x.dtype)
    return y


def matvec_skip_columns(weight_t: Tensor, x: Tensor, *, impl: str = "auto") -> Tensor:
    """y = sum over i with x[i] != 0 of x[i] * weight_t[i]: a product that skips input channels.

    weight_t [M, N] is the transposed weight, one input channel in a row; x [M]; result [N] in the dtype of x,
    accumulated in float32.
    """
    if weight_t.dim() != 2 or x.shape != weight_t.shape[:1]:
        raise ValueError(f"x {list(x.shape)} does not fit weight_t {list(weight_t.shape)}")
    if use_native(impl, weight_t, x, supported=_native_weight(weight_t)):
        inputs = x.float().contiguous()
        y = torch.empty(weight_t.shape[1], dtype=torch.float32)
        call(
            "kh_matvec_skip_columns", weight_t.data_ptr(), TYPES[weight_t.dtype], weight_t.stride(0),
            inputs.data_ptr(), *weight_t.shape, y.data_ptr(),
        )  # fmt: skip
        return y.to(x.dtype)
    if use_triton(impl, weight_t, x, supported=_triton_weight(weight_t)):
        from keyhole.kernels.ffn.triton.matvec import matvec_skip_columns as on_gpu

        return on_gpu(weight_t, x)
    active = x.nonzero()[:, 0]
    return (x[active].float() @ weight_t[active].float()).to(x.dtype)


def _native_weight(weight: Tensor) -> bool:
    return weight.dtype in _SUPPORTED and weight.stride(1) == 1


def _triton_weight(weight: Tensor) -> bool:
    return weight.dtype in FLOATS and weight.stride(1) == 1
