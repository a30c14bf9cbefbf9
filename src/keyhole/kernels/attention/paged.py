"""Exact attention of one query position over a paged KV cache: over selected slots, or over all of them.

Shapes: B requests, H KV heads, R = B * H rows (row r is head r % H of request r // H), G query heads of a KV
head, D head size, S selected slots.
"""

import torch
from torch import Tensor

from keyhole.kernels.attention.gather import check_operands, check_scales, has_triton
from keyhole.kernels.attention.native import attend_native, has_native
from keyhole.kernels.attention.reference import Attended, attend, picked_rows, valid_slots
from keyhole.kernels.backend.blocks import pages_of
from keyhole.kernels.backend.dispatch import at_hand, use_native, use_triton
from keyhole.kernels.backend.signatures import Side


def paged_gather_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    block_table: Tensor,
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
    """Attention of query [R, G, D] over keys and values [blocks, block size, H, D] in slots[r, :counts[r]].

    Slot s of request b is in block block_table[b, s // block size] (int32 [B, width]) at s % block size.
    The other operands are those of `gather_attention`; scales have the shape of keys without D. keys and
    values may have any strides but the last.
    """
    _check_cache(query, keys, values, block_table)
    check_operands(query, slots, counts, sink_logits)
    check_scales(keys, key_scales, "key")
    check_scales(values, value_scales, "value")
    blocks, block_size, heads, _ = keys.shape
    capacity = block_table.shape[1] * block_size
    if use_native(impl, query, keys, values, block_table, slots, supported=has_native(keys, values)):
        table = block_table.int().contiguous()
        pages = pages_of(keys, table)
        sides = _side(keys, key_scales), _side(values, value_scales)
        return attend_native(
            query, *sides, keys.dtype, pages, capacity, slots, counts, scale, softcap, sink_logits
        )
    operands = query, keys, values, block_table, slots, counts
    if use_triton(impl, *operands, supported=has_triton(query, keys, values)):
        from keyhole.kernels.attention.triton.gather import paged_gather_attention as on_gpu

        return on_gpu(
            *operands, scale=scale, softcap=softcap, sink_logits=sink_logits, key_scales=key_scales,
            value_scales=value_scales,
        )  # fmt: skip
    index, valid = valid_slots(slots, counts, capacity)
    rows = torch.arange(slots.shape[0], device=slots.device)[:, None]
    block = block_table.long()[rows // heads, index // block_size].masked_fill(~valid, 0)
    if not ((block >= 0) & (block < blocks)).all():
        raise ValueError(f"a slot is outside the cache: its block is not one of 0..{blocks - 1}")
    place = block * block_size + index % block_size
    picked = [
        picked_rows(_by_head(source), rows % heads, place, None if scales is None else _by_head(scales))
        for source, scales in ((keys, key_scales), (values, value_scales))
    ]
    return attend(query, *picked, valid, scale, softcap, sink_logits)  # pyright: ignore[reportCallIssue]


def paged_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    block_table: Tensor,
    lengths: Tensor,
    *,
    scale: float,
    softcap: float | None = None,
    sink_logits: Tensor | None = None,
    impl: str = "auto",
) -> Attended:
    """Attention of query [R, G, D] over all of the first lengths[b] slots (int [B]) of its request.

    The other operands are those of `paged_gather_attention`.

    Raises:
        ValueError: shapes do not fit, or a length is beyond the table (on a GPU it is cut to the table).
    """
    _check_cache(query, keys, values, block_table)
    _check_lengths(lengths, block_table, keys.shape[1])
    check_scales(keys, None, "key")
    check_scales(values, None, "value")
    counts = lengths.repeat_interleave(keys.shape[2])
    check_operands(query, counts.unsqueeze(1), counts, sink_logits)
    options = {"scale": scale, "softcap": softcap, "sink_logits": sink_logits}
    if use_native(impl, query, keys, values, block_table, lengths, supported=has_native(keys, values)):
        table = block_table.int().contiguous()
        sides, pages = (_side(keys, None), _side(values, None)), pages_of(keys, table)
        capacity = table.shape[1] * keys.shape[1]
        return attend_native(query, *sides, keys.dtype, pages, capacity, None, counts, **options)
    operands = query, keys, values, block_table
    if use_triton(impl, *operands, lengths, supported=has_triton(query, keys, values)):
        from keyhole.kernels.attention.triton.gather import paged_gather_attention as on_gpu

        return on_gpu(*operands, None, counts, key_scales=None, value_scales=None, **options)
    slots = torch.arange(int(counts.max()) if counts.numel() else 0, device=query.device)
    return paged_gather_attention(
        *operands, slots.expand(len(counts), -1), counts, impl="reference", **options
    )


def _check_lengths(lengths: Tensor, table: Tensor, block_size: int) -> None:
    if lengths.shape != table.shape[:1]:
        raise ValueError(f"lengths {list(lengths.shape)} do not fit block_table {list(table.shape)}")
    capacity = table.shape[1] * block_size
    if at_hand(lengths) and not all([0 <= length <= capacity for length in lengths.tolist()]):
        raise ValueError(
            f"a length of {lengths.tolist()} is outside 0..{capacity}, what the block table holds"
        )


def _by_head(source: Tensor) -> Tensor:
    """[blocks, block size, H, ...] as [H, slots, ...]."""
    return source.flatten(0, 1).transpose(0, 1)


def _check_cache(query: Tensor, keys: Tensor, values: Tensor, block_table: Tensor) -> None:
    if query.dim() != 3 or keys.dim() != 4 or block_table.dim() != 2:
        raise ValueError("query, keys and block_table must have three, four and two dimensions")
    fits = query.shape[0] == block_table.shape[0] * keys.shape[2] and keys.shape[3] == query.shape[2]
    if not fits or values.shape != keys.shape:
        raise ValueError(
            f"keys {list(keys.shape)}, values {list(values.shape)} and block_table {list(block_table.shape)} "
            f"do not fit query {list(query.shape)}"
        )


def _side(source: Tensor, scales: Tensor | None) -> Side:
    block, slot, head, _ = source.stride()
    if scales is None:
        return Side(source.data_ptr(), None, head, slot, block)
    scale_block, scale_slot, scale_head = scales.stride()
    return Side(source.data_ptr(), scales.data_ptr(), head, slot, block, scale_head, scale_slot, scale_block)
