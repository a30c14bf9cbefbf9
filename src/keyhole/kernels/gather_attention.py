"""Exact attention of one query position over selected slots of a KV cache.

Shapes: R rows (batch x KV heads), G query heads of a KV head, D head size, S selected, cap slots of a row.
"""

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from keyhole.kernels.dispatch import require, use_native
from keyhole.kernels.native import TYPES, call
from keyhole.kernels.pq_tables import softcapped
from keyhole.kernels.signatures import Pages, Side


class Attended(NamedTuple):
    out: Tensor  # [R, G, D], dtype of the query
    lse: Tensor  # float32 [R, G]: log-sum-exp of the logits read, sink logits included; -inf if none


def gather_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    counts: Tensor,
    *,
    scale: float,
    softcap: float | None = None,
    sink_logits: Tensor | None = None,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
    impl: str = "auto",
) -> Attended:
    """Attention of query [R, G, D] over keys and values [R, cap, D] in slots[r, :counts[r]].

    slots [R, S] int32 or int64, entries from counts[r] on are ignored; counts [R]. keys and values are
    float32, bfloat16, float16, or int8 with key_scales and value_scales [R, cap] (float32), of any row and
    slot stride. sink_logits [R, G] are extra logits that only enter the denominator. A row that reads nothing
    gives out = 0 and lse = -inf (or the sink logit).
    """
    check_shapes(query, keys, values, slots, counts)
    check_scales(keys, values, key_scales, value_scales)
    if use_native(impl, query, keys, values, slots, supported=_has_native(keys, values)):
        sides = (_side(keys, key_scales), _side(values, value_scales))
        return _native(query, sides, keys, Pages(), keys.shape[1], slots, counts, scale, softcap, sink_logits)
    rows = torch.arange(slots.shape[0], device=slots.device)[:, None]
    index, valid = _valid_slots(slots, counts, keys.shape[1])
    picked_keys = _picked(keys, rows, index, key_scales)
    picked_values = _picked(values, rows, index, value_scales)
    return attend(query, picked_keys, picked_values, valid, scale, softcap, sink_logits)


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    valid: Tensor,
    scale: float,
    softcap: float | None,
    sink_logits: Tensor | None,
) -> Attended:
    """Attention of query [R, G, D] over float32 keys and values [R, S, D] where valid [R, S]."""
    logits = softcapped(query.float() @ keys.transpose(1, 2) * scale, softcap)
    logits = logits.masked_fill(~valid[:, None], -torch.inf)
    if sink_logits is not None:
        logits = torch.cat([logits, sink_logits.float()[..., None]], -1)
    lse = logits.logsumexp(-1)
    weights = (logits - lse[..., None]).exp().masked_fill(logits == -torch.inf, 0)
    out = weights[..., : keys.shape[1]] @ values.masked_fill(~valid[..., None], 0)
    return Attended(out.to(query.dtype), lse)


def check_shapes(query: Tensor, keys: Tensor, values: Tensor, slots: Tensor, counts: Tensor) -> None:
    """Raise ValueError or TypeError unless the operands of `gather_attention` fit each other."""
    require(
        query.dim() == keys.dim() == values.dim() == 3, "query, keys and values must have three dimensions"
    )
    rows, _, size = query.shape
    require(
        keys.shape[0] == rows and keys.shape[2] == size and values.shape[:2] == keys.shape[:2],
        f"keys {list(keys.shape)} and values {list(values.shape)} do not fit query {list(query.shape)}",
    )
    require(
        slots.dim() == 2 and slots.shape[0] == rows and counts.shape == (rows,),
        f"slots {list(slots.shape)} and counts {list(counts.shape)} do not fit {rows} rows",
    )
    if slots.dtype not in (torch.int32, torch.int64) or counts.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"slots are {slots.dtype} and counts {counts.dtype}, expected int32 or int64")


def _valid_slots(slots: Tensor, counts: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    width = slots.shape[1]
    require(bool(((counts >= 0) & (counts <= width)).all()), f"a count lies outside 0..{width}")
    valid = torch.arange(width, device=slots.device) < counts[:, None]
    index = slots.long().masked_fill(~valid, 0)
    require(bool(((index >= 0) & (index < max(capacity, 1))).all()), f"a slot lies outside 0..{capacity - 1}")
    return index, valid


def _picked(source: Tensor, rows: Tensor, index: Tensor, scales: Tensor | None) -> Tensor:
    if source.shape[1] == 0:
        return source.new_zeros(*index.shape, source.shape[2], dtype=torch.float32)
    picked = source[rows, index].float()
    return picked if scales is None else picked * scales[rows, index][..., None].float()


def check_scales(
    keys: Tensor, values: Tensor, key_scales: Tensor | None, value_scales: Tensor | None
) -> None:
    """Raise unless int8 keys and values, and only they, come with float32 scales of matching shape."""
    for name, source, scales in (("key", keys, key_scales), ("value", values, value_scales)):
        require(
            (source.dtype == torch.int8) == (scales is not None),
            f"{name}_scales go with int8 and only with it",
        )
        if scales is not None:
            require(
                scales.shape == source.shape[:-1] and scales.dtype == torch.float32,
                f"{name}_scales are {scales.dtype} {list(scales.shape)}, "
                f"expected float32 {list(source.shape[:-1])}",
            )


def _has_native(keys: Tensor, values: Tensor) -> bool:
    dense = keys.stride(-1) == values.stride(-1) == 1
    return keys.dtype == values.dtype and keys.dtype in TYPES and dense and keys.shape[-1] == values.shape[-1]


def _side(source: Tensor, scales: Tensor | None) -> Side:
    if scales is None:
        return Side(source.data_ptr(), None, source.stride(0), source.stride(1))
    strides = (source.stride(0), source.stride(1), 0, scales.stride(0), scales.stride(1))
    return Side(source.data_ptr(), scales.data_ptr(), *strides)


def _native(
    query: Tensor,
    sides: tuple[Side, Side],
    keys: Tensor,
    pages: Pages,
    capacity: int,
    slots: Tensor,
    counts: Tensor,
    scale: float,
    softcap: float | None,
    sink_logits: Tensor | None,
) -> Attended:
    rows, heads, size = query.shape
    inputs, index, count = query.float().contiguous(), slots.int(), counts.int().contiguous()
    index = index if index.stride(1) == 1 else index.contiguous()
    sinks = None if sink_logits is None else sink_logits.float().contiguous()
    out = torch.empty(rows, heads, size, dtype=torch.float32)
    lse = torch.empty(rows, heads, dtype=torch.float32)
    call(
        "kh_gather_attention", inputs.data_ptr(), rows, heads, size,
        ctypes.addressof(sides[0]), ctypes.addressof(sides[1]), TYPES[keys.dtype], ctypes.addressof(pages),
        capacity, index.data_ptr(), index.stride(0), index.shape[1], count.data_ptr(),
        None if sinks is None else sinks.data_ptr(), scale, softcap or 0.0, out.data_ptr(), lse.data_ptr(),
    )  # fmt: skip
    return Attended(out.to(query.dtype), lse)
