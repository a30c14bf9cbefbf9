"""Logits of a query group against keys, each key read once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from keyhole.kernels.backend.triton import LEAST, block_of, padded, products, rows_first

_TILE = 32 << 10  # bytes of the keys that a program reads


def exact_scores(
    query: Tensor, keys: Tensor, first: int, last: int, scale: float, table: Tensor | None = None
) -> Tensor:
    """As the operation of that name."""
    rows, heads, size = query.shape
    # In the finer of both dtypes, so that nothing is lost.
    query, keys = query.to(torch.promote_types(query.dtype, keys.dtype)).contiguous(), rows_first(keys)
    out = torch.empty(rows, heads, last - first, dtype=torch.float32, device=query.device)
    tile = max(LEAST, _TILE // (padded(size) * query.element_size()))
    order, kv_heads, page = ((0, 1), 1, 0) if table is None else ((2, 1, 0), keys.shape[2], keys.shape[1])
    strides = [*(keys.stride(at) for at in order), 0][:3]
    table = table if table is None else rows_first(table)
    if out.numel():
        _scores[(triton.cdiv(last - first, tile), rows)](
            query, keys, out, *strides, table, 0 if table is None else table.stride(0), len(keys), kv_heads,
            first, last - first, scale, heads, size,
            PAGE=page, HEADS=padded(heads), SIZE=padded(size), SLOTS=tile,
        )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["first", "slots"])
def _scores(
    query, keys, out, row_stride, slot_stride, block_stride, table, table_stride, blocks, kv_heads, first,
    slots, scale, heads: tl.constexpr, size: tl.constexpr, PAGE: tl.constexpr, HEADS: tl.constexpr,
    SIZE: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64)
    head, place = tl.arange(0, HEADS), tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    there, slot = place < slots, (first + place).to(tl.int64)
    if PAGE:
        block, held = block_of(table + row // kv_heads * table_stride, slot, there, blocks, PAGE)
        places = keys + row % kv_heads * row_stride + block * block_stride + slot % PAGE * slot_stride
    else:
        held, places = there, keys + row * row_stride + slot * slot_stride
    asked = query + (row * heads + head) * size
    logits = products(asked, places, head < heads, held, size, SIZE) * scale
    written = out + (row * heads + head[:, None]) * slots + place[None, :]
    tl.store(written, logits, mask=(head < heads)[:, None] & there[None, :])
