"""Exact attention of one query position over selected slots of keys and values that are held as codes.

Shapes: B batch, Hkv KV heads, G query heads of a KV head, D and E size of keys and values, n groups of g
tokens, S selected, W bytes of a token's codes.
"""

import ctypes

import torch
from torch import Tensor

from keyhole.kernels.attention.bits import BITS, unpack_codes
from keyhole.kernels.attention.gather import check_operands, fits_triton
from keyhole.kernels.attention.reference import Attended, attend, valid_slots
from keyhole.kernels.attention.types import Codes, Layout
from keyhole.kernels.backend.dispatch import use_native, use_triton
from keyhole.kernels.backend.native import call
from keyhole.kernels.backend.rows import at
from keyhole.kernels.backend.signatures import CodeSide


def packed_attention(
    query: Tensor,
    keys: Codes,
    values: Codes,
    layout: Layout,
    slots: Tensor,
    counts: Tensor,
    *,
    scale: float,
    softcap: float | None = None,
    impl: str = "auto",
) -> Attended:
    """Attention of query [B * Hkv, G, D] over keys and values in slots[r, :counts[r]], r = b * Hkv + h.

    Slot s is token s % g of group s // g. slots [B * Hkv, S] and counts [B * Hkv] are as in
    `gather_attention`, and so is what comes out, of E numbers.
    """
    check_operands(query, slots, counts, None)
    _check(query, keys, values, layout)
    if use_native(impl, query, *keys, *values, slots, supported=_has_native(keys, values, layout)):
        return _native(query, keys, values, layout, slots, counts, scale, softcap)
    if use_triton(impl, query, *keys, *values, slots, counts, supported=fits_triton(query, layout.values)):
        from keyhole.kernels.attention.triton.packed import packed_attention as on_gpu

        return on_gpu(query, keys, values, layout, slots, counts, scale=scale, softcap=softcap)
    batch, heads, groups, size = keys.codes.shape[:4]
    index, valid = valid_slots(slots, counts, groups * size)
    index = index.view(batch, heads, index.shape[1])
    picked = keys_at(keys, layout, index).flatten(0, 1), values_at(values, layout, index).flatten(0, 1)
    return attend(query, *picked, valid, scale, softcap, None)


def keys_at(keys: Codes, layout: Layout, slots: Tensor) -> Tensor:
    """The keys float32 [B, Hkv, S, D] of slots [B, Hkv, S]."""
    if keys.codes.shape[2] == 0:
        return keys.low.new_zeros(*slots.shape, layout.keys)
    group, token = slots // keys.codes.shape[3], slots % keys.codes.shape[3]
    picked = Codes(at(keys.codes, group, token), at(keys.scale, group), at(keys.low, group))
    return decoded(picked, layout.bits, layout.keys)


def values_at(values: Codes, layout: Layout, slots: Tensor) -> Tensor:
    """The values float32 [B, Hkv, S, E] of slots [B, Hkv, S]."""
    if values.codes.shape[2] == 0:
        return values.low.new_zeros(*slots.shape, layout.values)
    group, token = slots // values.codes.shape[3], slots % values.codes.shape[3]
    scale, low = (at(part.unsqueeze(-1), group, token) for part in (values.scale, values.low))
    return decoded(Codes(at(values.codes, group, token), scale, low), layout.bits, layout.values)


def decoded(side: Codes, bits: int, size: int) -> Tensor:
    """The float32 numbers [..., size] that codes [..., W] stand for, with ranges that fit them."""
    return torch.addcmul(side.low, side.scale, unpack_codes(side.codes, bits, size).float())


def _check(query: Tensor, keys: Codes, values: Codes, layout: Layout) -> None:
    """Raise ValueError unless the shapes fit."""
    shape = keys.codes.shape[:4]
    widths = tuple(-(-size * layout.bits // 8) for size in layout[1:])
    fits = layout.bits in BITS and query.dim() == 3 and keys.codes.dim() == 5
    fits = fits and (query.shape[0], query.shape[2]) == (shape[0] * shape[1], layout.keys)
    for side, width, ranges in ((keys, widths[0], layout.keys), (values, widths[1], shape[-1])):
        fits = fits and side.codes.shape == (*shape, width) and side.codes.dtype == torch.uint8
        fits = fits and side.scale.shape == side.low.shape == (*shape[:3], ranges)
    if not fits:
        shapes = [list(part.shape) for part in (*keys, *values)]
        raise ValueError(f"{layout} and codes, scales and lows {shapes} do not fit query {list(query.shape)}")


def _has_native(keys: Codes, values: Codes, layout: Layout) -> bool:
    """Sizes alike, rows that one stride steps over, and scales that lie as the lows do."""
    dense = all(part.stride(-1) == 1 and _flat(part) for part in (*keys, *values))
    alike = all(side.scale.stride() == side.low.stride() for side in (keys, values))
    return layout.keys == layout.values and dense and alike


def _flat(tensor: Tensor) -> bool:
    batch, heads = tensor.stride()[:2]
    return tensor.shape[0] == 1 or batch == heads * tensor.shape[1]


def _native(
    query: Tensor, keys: Codes, values: Codes, layout: Layout, slots: Tensor, counts: Tensor, scale: float,
    softcap: float | None,
) -> Attended:  # fmt: skip
    rows, heads, size = query.shape
    groups, grouped = keys.codes.shape[2:4]
    inputs, index, count = query.float().contiguous(), slots.int(), counts.int().contiguous()
    index = index if index.stride(1) == 1 else index.contiguous()
    out = torch.empty(rows, heads, size, dtype=torch.float32)
    lse = torch.empty(rows, heads, dtype=torch.float32)
    sides = _side(keys), _side(values)
    call(
        "kh_packed_attention", inputs.data_ptr(), rows, heads, size, *map(ctypes.addressof, sides),
        layout.bits, grouped, groups * grouped, index.data_ptr(), index.stride(0), index.shape[1],
        count.data_ptr(), scale, softcap or 0.0, out.data_ptr(), lse.data_ptr(),
    )  # fmt: skip
    return Attended(out.to(query.dtype), lse)


def _side(side: Codes) -> CodeSide:
    pointers = (part.data_ptr() for part in side)
    return CodeSide(*pointers, *side.codes.stride()[1:4], *side.scale.stride()[1:3])
