"""Causal attention of new tokens over a past and themselves, without a mask over all of it.

All of them see the past, so that its part needs no mask, and K and V of it are read once for each KV head.
The two parts are merged by their log-sum-exp.

Legend: B batch, H query heads, Hkv KV heads, G = H / Hkv, Q new tokens, N all tokens, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.attention.merge import Part, merge

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def can_continue(query: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether `continued_attention` computes this: on a CPU, without gradients, which it would lose."""
    tensors = (query, keys, values)
    same = query.dtype == keys.dtype == values.dtype and keys.shape[-1] == values.shape[-1]
    learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    return same and query.dtype in _DTYPES and query.is_cpu and not learns


def continued_attention(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Attend the newest `query [B, H, Q, D]` to `keys`, `values [B, Hkv, N, D]`, N > Q; `[B, H, Q, D]`."""
    heads, queries, past = keys.shape[1], query.shape[2], keys.shape[2] - query.shape[2]
    grouped = query.unflatten(1, (heads, -1))  # [B, Hkv, G, Q, D]
    seen = _attend(grouped.flatten(2, 3), keys[:, :, :past], values[:, :, :past], scale, causal=False)
    own = [
        _attend(grouped[:, :, group], keys[:, :, past:], values[:, :, past:], scale, causal=True)
        for group in range(grouped.shape[2])
    ]
    before = Part(seen.out.unflatten(2, (-1, queries)), seen.lse.unflatten(2, (-1, queries)))
    among = Part(*(torch.stack(parts, dim=2) for parts in zip(*own, strict=True)))
    return merge(before, among).out.flatten(1, 2)


def _attend(query: Tensor, keys: Tensor, values: Tensor, scale: float, *, causal: bool) -> Part:
    """As torch's `scaled_dot_product_attention` on a CPU, which keeps the log-sum-exp to itself."""
    return Part(
        *torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, keys, values, 0.0, causal, scale=scale
        )
    )
