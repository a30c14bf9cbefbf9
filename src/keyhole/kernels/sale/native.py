"""The native call of block-sparse attention of a prompt."""

import ctypes

import torch
from torch import Tensor

from keyhole.kernels.attention.prompt import Strided
from keyhole.kernels.backend.c_types import long_ as _long
from keyhole.kernels.backend.c_types import pointer as _pointer
from keyhole.kernels.backend.native import TYPES, call
from keyhole.kernels.sale.tiles import BLOCK, Reach, SparseAttended, levels


class _Job(ctypes.Structure):
    """kh::sale::Job of native/sale.hpp."""

    _fields_ = (
        *((name, Strided) for name in ("query", "keys", "values")),
        *((name, _long) for name in ("batch", "kv_heads", "groups", "queries", "tokens")),
        *((name, _long) for name in ("key_size", "value_size")),
        *((name, _pointer) for name in ("padding", "tau")),
        ("scale", ctypes.c_double),
        *((name, _long) for name in ("sinks", "window", "width", "levels", "pooled", "rows", "means")),
        *((name, _pointer) for name in ("out", "kept", "map")),
    )


def attend_native(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    tau: Tensor,
    scale: float,
    reach: Reach,
    padding: tuple[int, ...],
    with_map: bool,
) -> SparseAttended:
    """As `keyhole.kernels.sale.attention`, of operands that were checked."""
    batch, heads, queries, size = query.shape
    kv_heads, tokens, width = values.shape[1:]
    groups = -(-queries // reach.rows)
    query, keys, values = (
        part if part.stride(-1) == 1 else part.contiguous() for part in (query, keys, values)
    )
    tau, unused = tau.contiguous(), torch.tensor(padding)
    dtype = torch.float32 if query.dtype == torch.float16 else query.dtype
    out = torch.empty(batch, heads, queries, width, dtype=dtype)
    for row, slots in enumerate(padding):
        out[row, :, : max(slots - (tokens - queries), 0)] = 0.0
    kept = torch.zeros(batch, heads, groups, dtype=torch.int32)
    words = torch.zeros(batch, heads, groups, -(-tokens // BLOCK), dtype=torch.int32) if with_map else None
    job = _Job(
        *map(Strided.of, (query, keys, values)), batch, kv_heads, heads // kv_heads, queries, tokens, size,
        width, unused.data_ptr(), tau.data_ptr(), scale, reach.sinks, reach.window, reach.width, levels(size),
        reach.pooled, reach.rows, reach.means, out.data_ptr(), kept.data_ptr(),
        None if words is None else words.data_ptr(),
    )  # fmt: skip
    call("kh_sale_attention", ctypes.addressof(job), TYPES[query.dtype])
    return SparseAttended(out.to(query.dtype), kept, words)
