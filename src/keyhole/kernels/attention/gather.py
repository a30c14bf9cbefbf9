"""Exact attention of one query position over selected slots of a KV cache.

Shapes: R rows (batch x KV heads), G query heads of a KV head, D head size, S selected, cap slots of a row.
"""

import torch
from torch import Tensor

from keyhole.kernels.attention.native import attend_native, has_native
from keyhole.kernels.attention.reference import Attended, attend, picked_rows, valid_slots
from keyhole.kernels.backend.dispatch import use_native, use_triton
from keyhole.kernels.backend.native import FLOATS, TYPES
from keyhole.kernels.backend.signatures import Pages, Side

_LARGEST, _MOST_HEADS = 256, 16  # head size and query heads of what the Triton kernels take


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
    with_logits: bool = False,
    impl: str = "auto",
) -> Attended:
    """Attention of query [R, G, D] over keys and values [R, cap, D] in slots[r, :counts[r]].

    slots [R, S] int32 or int64, entries from counts[r] on are ignored; counts [R]. keys and values are
    float32, bfloat16, float16, or int8 with key_scales and value_scales [R, cap] (float32), of any row and
    slot stride. sink_logits [R, G] are extra logits that only enter the denominator. A row that reads nothing
    gives out = 0 and lse = -inf (or the sink logit). The logits of what is read are returned where asked for.
    """
    _check_cache(query, keys, values)
    check_operands(query, slots, counts, sink_logits)
    check_scales(keys, key_scales, "key")
    check_scales(values, value_scales, "value")
    if use_native(impl, query, keys, values, slots, supported=has_native(keys, values)):
        sides = _side(keys, key_scales), _side(values, value_scales)
        return attend_native(
            query,
            *sides,
            keys.dtype,
            Pages(),
            keys.shape[1],
            slots,
            counts,
            scale,
            softcap,
            sink_logits,
            with_logits=with_logits,
        )
    if use_triton(impl, query, keys, values, slots, counts, supported=has_triton(query, keys, values)):
        from keyhole.kernels.attention.triton.gather import gather_attention as on_gpu

        return on_gpu(
            query, keys, values, slots, counts, scale=scale, softcap=softcap, sink_logits=sink_logits,
            key_scales=key_scales, value_scales=value_scales, with_logits=with_logits,
        )  # fmt: skip
    index, valid = valid_slots(slots, counts, keys.shape[1])
    rows = torch.arange(slots.shape[0], device=slots.device)[:, None]
    picked = (
        picked_rows(keys, rows, index, key_scales),
        picked_rows(values, rows, index, value_scales),
    )
    return attend(query, *picked, valid, scale, softcap, sink_logits, with_logits=with_logits)


def has_triton(query: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether the Triton kernels read such keys and values."""
    return fits_triton(query, values.shape[-1]) and keys.dtype in TYPES and values.dtype in TYPES


def fits_triton(query: Tensor, size: int) -> bool:
    """Whether tiles of such queries, and values of that size, fit into a multiprocessor."""
    fits = max(query.shape[-1], size) <= _LARGEST and query.shape[1] <= _MOST_HEADS
    return fits and query.dtype in FLOATS


def check_operands(query: Tensor, slots: Tensor, counts: Tensor, sink_logits: Tensor | None) -> None:
    """Raise ValueError or TypeError unless slots, counts and sink_logits fit query [R, G, D]."""
    if slots.dim() != 2 or slots.shape[0] != query.shape[0] or counts.shape != query.shape[:1]:
        raise ValueError(
            f"slots {list(slots.shape)} and counts {list(counts.shape)} do not fit {query.shape[0]} rows"
        )
    if slots.dtype not in (torch.int32, torch.int64) or counts.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"slots are {slots.dtype} and counts {counts.dtype}, expected int32 or int64")
    if sink_logits is not None and sink_logits.shape != query.shape[:2]:
        raise ValueError(f"sink_logits {list(sink_logits.shape)} do not fit query {list(query.shape)}")


def check_scales(source: Tensor, scales: Tensor | None, name: str) -> None:
    """Raise ValueError unless int8 data, and only they, come with float32 scales of matching shape."""
    if (source.dtype == torch.int8) != (scales is not None):
        raise ValueError(f"{name}_scales go with int8 and only with it, {name}s are {source.dtype}")
    if scales is not None and (scales.shape != source.shape[:-1] or scales.dtype != torch.float32):
        expected = list(source.shape[:-1])
        raise ValueError(
            f"{name}_scales are {scales.dtype} {list(scales.shape)}, expected float32 {expected}"
        )


def _check_cache(query: Tensor, keys: Tensor, values: Tensor) -> None:
    if query.dim() != 3 or keys.dim() != 3 or values.dim() != 3:
        raise ValueError("query, keys and values must have three dimensions")
    fits = keys.shape[0] == query.shape[0] and keys.shape[2] == query.shape[2]
    if not fits or values.shape[:2] != keys.shape[:2]:
        raise ValueError(
            f"keys {list(keys.shape)} and values {list(values.shape)} do not fit query {list(query.shape)}"
        )


def _side(source: Tensor, scales: Tensor | None) -> Side:
    if scales is None:
        return Side(source.data_ptr(), None, source.stride(0), source.stride(1))
    strides = (source.stride(0), source.stride(1), 0, scales.stride(0), scales.stride(1))
    return Side(source.data_ptr(), scales.data_ptr(), *strides)
