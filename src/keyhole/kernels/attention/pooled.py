"""Attention weights of every key, gathered to scores and shares of pages in one pass over the keys.

Shapes: B batch, Hkv KV heads, G query heads of a KV head, H = Hkv * G, D head size, cap slots of a row,
P pages, L lists of scores: Hkv, or 1 for all heads. Pages are what scores are summed over, blocks are what a
block table names.
"""

import ctypes

import torch
from torch import Tensor

from keyhole.kernels.attention.reference import page_sums
from keyhole.kernels.attention.types import Pooled, Pooling, Span
from keyhole.kernels.backend.blocks import in_one_piece, pages_of
from keyhole.kernels.backend.dispatch import at_hand, use_native, use_triton
from keyhole.kernels.backend.native import FLOATS, TYPES, call
from keyhole.kernels.backend.signatures import Pages, PoolingCall
from keyhole.kernels.pq.tables import softcapped

_Extras = tuple[Tensor | None, Tensor | None]


def pooled_attention(
    query: Tensor,
    keys: Tensor,
    span: Span,
    how: Pooling,
    *,
    score_extra: Tensor | None = None,
    share_extra: Tensor | None = None,
    block_table: Tensor | None = None,
    impl: str = "auto",
) -> Pooled:
    """Softmax weights of query [B, H, D] over keys [B, Hkv, cap, D], pooled; head h reads KV head h // G.

    With a block_table [B, W] (int32 or int64) keys are blocks [blocks, block size, Hkv, D].
    score_extra and share_extra [B, H] are logarithms of mass that the denominators of scores and of shares
    hold beside the span's.

    Raises:
        ValueError: shapes do not fit, or the span does not lie in the keys (on a GPU only `last` is looked
            at, and the others are cut to the keys).
    """
    _check(query, keys, span, how, block_table)
    operands = (query, keys, span, how, (score_extra, share_extra), block_table)
    tensors = query, keys, *(() if block_table is None else (block_table,))
    if use_native(impl, *tensors, supported=keys.dtype in FLOATS and keys.stride(-1) == 1):
        return _native(*operands)
    if use_triton(impl, *tensors, supported=keys.dtype in FLOATS):
        from keyhole.kernels.attention.triton.pooled import pooled_attention as on_gpu

        return on_gpu(*operands)
    return _reference(*operands)


def _check(query: Tensor, keys: Tensor, span: Span, how: Pooling, table: Tensor | None) -> None:
    fits = query.dim() == 3 and keys.dim() == 4 and query.shape[2] == keys.shape[3]
    if fits and table is None:
        fits = len(query) == len(keys) and query.shape[1] % keys.shape[1] == 0
    elif fits and table is not None:
        fits = table.dim() == 2 and len(query) == len(table) and query.shape[1] % keys.shape[2] == 0
    if not fits:
        named = "" if table is None else f" and block_table {list(table.shape)}"
        raise ValueError(f"keys {list(keys.shape)}{named} do not fit query {list(query.shape)}")
    *bounds, last = span
    if any([bound.shape != query.shape[:1] for bound in bounds]):
        shapes = ", ".join(f"{name} {list(t.shape)}" for name, t in zip(Span._fields, bounds, strict=False))
        raise ValueError(f"{shapes}, expected one a batch row")
    slots = _slots(keys, table)
    inside = 0 <= last <= slots
    if at_hand(*bounds):
        rows = zip(*(bound.tolist() for bound in bounds), strict=True)
        inside = inside and all([_inside(row, last, slots) for row in rows])
    if not inside:
        raise ValueError(f"{span} does not lie in 0..{slots}; give 0 <= begin <= first, stop <= end and last")
    if how.page < 1 or not how.sharpness > 0:
        raise ValueError(f"page={how.page}, sharpness={how.sharpness}, expected at least 1 and above 0")


def _slots(keys: Tensor, table: Tensor | None) -> int:
    """Slots of a batch row."""
    return keys.shape[2] if table is None else keys.shape[1] * table.shape[1]


def _inside(bounds: tuple[int, ...], last: int, slots: int) -> bool:
    begin, end, first, stop = bounds
    return 0 <= begin <= first and stop <= end <= slots and stop <= last


def _native(
    query: Tensor, keys: Tensor, span: Span, how: Pooling, extras: _Extras, block_table: Tensor | None
) -> Pooled:
    batch, heads, size = query.shape
    if block_table is None:
        kv_heads, strides, blocks = keys.shape[1], (*keys.stride()[:3], 0), Pages()
    else:
        table, (block, slot, head, _) = block_table.int().contiguous(), keys.stride()
        kv_heads, strides, blocks = keys.shape[2], (0, head, slot, block), pages_of(keys, table)
    pages = -(-span.last // how.page)
    query = query.float().contiguous()
    bounds = [bound.long().contiguous() for bound in span[:-1]]
    logs = [None if each is None else each.float().contiguous() for each in extras]
    scores = torch.empty(batch, kv_heads if how.per_head else 1, pages)
    shares, lse = torch.empty(batch, kv_heads, pages), torch.empty(batch, heads)
    operands = PoolingCall(
        query.data_ptr(), keys.data_ptr(), TYPES[keys.dtype], *strides, blocks,
        batch, kv_heads, heads // kv_heads, size,
        *(bound.data_ptr() for bound in bounds), _slots(keys, block_table), span.last, how.page,
        how.scale, how.softcap or 0.0, how.sharpness, how.per_head, how.largest,
        *(None if each is None else each.data_ptr() for each in logs),
        scores.data_ptr(), shares.data_ptr(), lse.data_ptr(),
    )  # fmt: skip
    call("kh_pooled_attention", ctypes.addressof(operands))
    return Pooled(scores, shares, lse)


def _reference(
    query: Tensor, keys: Tensor, span: Span, how: Pooling, extras: _Extras, block_table: Tensor | None
) -> Pooled:
    score_extra, share_extra = extras
    if block_table is not None:
        keys = in_one_piece(keys, block_table, span.begin, span.end)
    kv_heads = keys.shape[1]
    grouped = query.float().unflatten(1, (kv_heads, -1))
    logits = softcapped(grouped @ keys.float().transpose(2, 3) * how.scale, how.softcap)
    logits = logits.masked_fill(~_within(span.begin, span.end, logits.shape[-1]), -torch.inf)
    lse = logits.logsumexp(-1).flatten(1)
    pooled = logits[..., : span.last]
    shares = _weights(pooled, lse, share_extra, span)
    sharp = lse if how.sharpness == 1 else (logits * how.sharpness).logsumexp(-1).flatten(1)
    scores = _weights(pooled * how.sharpness, sharp, score_extra, span)
    scores = scores if how.per_head else scores.flatten(1, 2).unsqueeze(1)
    scores = scores.amax(2) if how.largest else scores.mean(2)
    return Pooled(page_sums(scores, how.page), page_sums(shares.mean(2), how.page), lse)


def _weights(logits: Tensor, lse: Tensor, extra: Tensor | None, span: Span) -> Tensor:
    """Softmax [B, Hkv, G, N] of logits, zero where nothing is pooled; a row without mass has no weights."""
    total = lse if extra is None else torch.logaddexp(lse, extra.float())
    total = total.masked_fill(total == -torch.inf, 0.0).view(logits.shape[:3])
    weights = (logits - total.unsqueeze(-1)).exp()
    return weights.masked_fill(~_within(span.first, span.stop, logits.shape[-1]), 0.0)


def _within(begin: Tensor, end: Tensor, slots: int) -> Tensor:
    """Which of so many slots lie in [begin[b], end[b]), bool [B, 1, 1, slots]."""
    slot = torch.arange(slots, device=begin.device)
    return ((slot >= begin.view(-1, 1)) & (slot < end.view(-1, 1)))[:, None, None]
