"""Two parts of attention put together in one launch, which a decode step does in every layer."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from keyhole.kernels.backend.triton import padded


def merge_attention(
    first: Tensor, first_lse: Tensor, second: Tensor, second_lse: Tensor
) -> tuple[Tensor, Tensor]:
    """As the operation of that name."""
    size = first.shape[-1]
    first, second, first_lse, second_lse = (
        part.contiguous() for part in (first, second, first_lse, second_lse)
    )
    out, lse = torch.empty_like(first), torch.empty_like(first_lse)
    if lse.numel():
        _merge[(lse.numel(),)](
            first, first_lse, second, second_lse, out, lse, size, SIZE=padded(size), num_warps=1
        )  # fmt: skip
    return out, lse


@triton.jit
def _merge(
    first, first_lse, second, second_lse, out, lse, size: tl.constexpr, SIZE: tl.constexpr
):  # fmt: skip
    row, channel = tl.program_id(0).to(tl.int64), tl.arange(0, SIZE)
    places = row * size + channel
    mine = tl.load(first + places, mask=channel < size, other=0.0).to(tl.float32)
    other = tl.load(second + places, mask=channel < size, other=0.0).to(tl.float32)
    a, b = tl.load(first_lse + row), tl.load(second_lse + row)
    # Of two empty parts any weights will do.
    lead = tl.where((a == float("-inf")) & (b == float("-inf")), 0.0, a - b)
    joined = mine / (1 + tl.exp(-lead)) + other / (1 + tl.exp(lead))
    tl.store(out + places, joined, mask=channel < size)
    tl.store(lse + row, tl.maximum(a, b) + tl.log(1 + tl.exp(-tl.abs(lead))))
