"""The native call of attention over selected slots, contiguous or paged."""

import ctypes

import torch
from torch import Tensor

from keyhole.kernels.attention.reference import Attended
from keyhole.kernels.backend.native import TYPES, call
from keyhole.kernels.backend.signatures import Pages, Side


def has_native(keys: Tensor, values: Tensor) -> bool:
    """Whether the native code reads such keys and values."""
    same = keys.dtype == values.dtype and keys.shape[-1] == values.shape[-1]
    return same and keys.dtype in TYPES and keys.stride(-1) == 1 and values.stride(-1) == 1


def attend_native(
    query: Tensor,
    keys: Side,
    values: Side,
    dtype: torch.dtype,
    pages: Pages,
    capacity: int,
    slots: Tensor | None,
    counts: Tensor,
    scale: float,
    softcap: float | None,
    sink_logits: Tensor | None,
    *,
    with_logits: bool = False,
) -> Attended:
    """Attention of query [R, G, D] over rows of `capacity` slots; the caller keeps the cache alive.

    Without slots a row reads its first ones.
    """
    rows, heads, size = query.shape
    inputs, count = query.float().contiguous(), counts.int().contiguous()
    if slots is None:
        listed, width = (None, 0), int(count.max()) if rows else 0
    else:
        index, width = slots.int(), slots.shape[1]
        index = index if index.stride(1) == 1 else index.contiguous()
        listed = index.data_ptr(), index.stride(0)
    sinks = None if sink_logits is None else sink_logits.float().contiguous()
    out = torch.empty(rows, heads, size, dtype=torch.float32)
    lse = torch.empty(rows, heads, dtype=torch.float32)
    logits = torch.empty(rows, heads, width) if with_logits else None
    call(
        "kh_gather_attention", inputs.data_ptr(), rows, heads, size,
        ctypes.addressof(keys), ctypes.addressof(values), TYPES[dtype], ctypes.addressof(pages),
        capacity, *listed, width, count.data_ptr(),
        None if sinks is None else sinks.data_ptr(), scale, softcap or 0.0, out.data_ptr(), lse.data_ptr(),
        None if logits is None else logits.data_ptr(),
    )  # fmt: skip
    return Attended(out.to(query.dtype), lse, logits)
