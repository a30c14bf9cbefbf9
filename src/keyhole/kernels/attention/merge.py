"""Softmax attention over two disjoint parts, put together by their log-sum-exp."""

import torch
from torch import Tensor

from keyhole.kernels.backend.dispatch import use_triton
from keyhole.kernels.backend.native import FLOATS


def merge_attention(
    first: Tensor, first_lse: Tensor, second: Tensor, second_lse: Tensor, *, impl: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Attention [..., D] over the union of two parts, in the dtype of the first, and its log-sum-exp [...].

    Log-sum-exps are float32 [...]; a part over no token has attention 0 and log-sum-exp -inf.
    """
    if first.shape != second.shape or not first.shape[:-1] == first_lse.shape == second_lse.shape:
        shapes = [list(tensor.shape) for tensor in (first, first_lse, second, second_lse)]
        raise ValueError(f"the shapes of two parts and their log-sum-exps do not fit: {shapes}")
    operands = first, first_lse, second, second_lse
    if use_triton(impl, *operands, supported=first.dtype in FLOATS and second.dtype in FLOATS):
        from keyhole.kernels.attention.triton.merge import merge_attention as on_gpu

        return on_gpu(*operands)
    lse = torch.logaddexp(first_lse, second_lse)
    # Weights from the difference add up to one however large the logits are. Two empty parts have none; both
    # outs are zero then, so any weight will do.
    lead = (first_lse - second_lse).masked_fill(lse == -torch.inf, 0.0).unsqueeze(-1)
    out = first.float() * lead.sigmoid() + second.float() * (-lead).sigmoid()
    return out.to(first.dtype), lse
