"""Logits of a query group against keys, each key read once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from keyhole.kernels.gpu.common import LEAST, padded, product, rows_first

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
    head, channel = tl.arange(0, HEADS), tl.arange(0, SIZE)
    slot = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    asked = (head < heads)[:, None] & (channel < size)[None, :]
    q = tl.load(query + row * heads * size + head[:, None] * size + channel[None, :], mask=asked, other=0.0)
    there = (slot < slots)[:, None] & (channel < size)[None, :]
    places = keys + row * row_stride + slot.to(tl.int64)[:, None] * slot_stride + channel[None, :]
    k = tl.load(places, mask=there, other=0.0)
    logits = product(q, tl.trans(k.to(q.dtype))) * scale
    written = out + (row * heads + head[:, None]) * slots + slot[None, :]
    tl.store(written, logits, mask=(head < heads)[:, None] & (slot < slots)[None, :])
