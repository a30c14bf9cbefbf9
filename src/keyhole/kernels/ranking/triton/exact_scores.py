"""Logits of a query group against keys, each key read once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from keyhole.kernels.backend.triton import LEAST, padded, products, rows_first

_TILE = 32 << 10  # bytes of the keys that a program reads


def exact_scores(query: Tensor, keys: Tensor, scale: float) -> Tensor:
    """Logits [R, G, N] (float32) of query [R, G, D] against keys [R, N, D]."""
    rows, heads, size = query.shape
    slots = keys.shape[1]
    # In the finer of both dtypes, so that nothing is lost.
    query, keys = query.to(torch.promote_types(query.dtype, keys.dtype)).contiguous(), rows_first(keys)
    out = torch.empty(rows, heads, slots, dtype=torch.float32, device=query.device)
    tile = max(LEAST, _TILE // (padded(size) * query.element_size()))
    if out.numel():
        _scores[(triton.cdiv(slots, tile), rows)](
            query, keys, out, keys.stride(0), keys.stride(1), slots, scale,
            heads, size, HEADS=padded(heads), SIZE=padded(size), SLOTS=tile,
        )  # fmt: skip
    return out


@triton.jit
def _scores(
    query, keys, out, row_stride, slot_stride, slots, scale, heads: tl.constexpr, size: tl.constexpr,
    HEADS: tl.constexpr, SIZE: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64)
    head, slot = tl.arange(0, HEADS), tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    places = keys + row * row_stride + slot.to(tl.int64) * slot_stride
    asked = query + (row * heads + head) * size
    logits = products(asked, places, head < heads, slot < slots, size, SIZE) * scale
    written = out + (row * heads + head[:, None]) * slots + slot[None, :]
    tl.store(written, logits, mask=(head < heads)[:, None] & (slot < slots)[None, :])
