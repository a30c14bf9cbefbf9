"""Exact attention over everything that is cached.

Legend: B batch, H query heads, Hkv KV heads, G = H / Hkv, Q queries, N cached tokens, D head size.
Query head h reads KV head h // G.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from keyhole import kernels
from keyhole.attention.continued import can_continue, continued_attention
from keyhole.core.masks import Visible

_LOGITS_PER_CHUNK = 1 << 26


def dense_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    scale: float,
    mask: Tensor | None = None,
    softcap: float | None = None,
    sink_logits: Tensor | None = None,
    causal: bool = True,
) -> Tensor:
    """Attend `query [B, H, Q, D]` to all of `keys`, `values [B, Hkv, N, D]`; returns `[B, H, Q, Dv]`.

    The last query is the newest token: without a mask, and if `causal`, query i sees N - Q + i + 1 tokens.

    Args:
        mask: bool `[B or 1, 1 or Hkv, Q, N]`, true where a query may look; replaces the causal mask.
        softcap: logits become `softcap * tanh(logits / softcap)` (Gemma 2).
        sink_logits: `[H]`, one more logit for each head that takes mass and gives nothing (GPT-OSS).
    """
    if causal and query.shape[2] > 1 and kernels.prompt_pays(query, keys, values):
        shown = Visible(mask, query.shape[0])
        if shown.causal:
            return kernels.prompt_attention(
                query,
                keys,
                values,
                scale=scale,
                padding=shown.padding,
                softcap=softcap,
                sink_logits=sink_logits,
            )
    if softcap is not None or sink_logits is not None:
        return _explicit(query, keys, values, scale, mask, softcap, sink_logits, causal)
    groups = query.shape[1] // keys.shape[1]
    queries, tokens = query.shape[2], keys.shape[2]
    if queries == 1:
        # Folding the group makes K and V be read once for each KV head, not once for each query head.
        folded = query.unflatten(1, (-1, groups)).squeeze(3)
        return F.scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=scale).reshape(
            query.shape[0], -1, 1, values.shape[-1]
        )
    if mask is None and causal and queries < tokens:
        if can_continue(query, keys, values):
            return continued_attention(query, keys, values, scale)
        mask = causal_mask(queries, tokens, query.device)
    if mask is None:
        return F.scaled_dot_product_attention(
            query, keys, values, is_causal=causal, scale=scale, enable_gqa=groups > 1
        )
    # With a mask torch would need K and V repeated for each head of the group; a pass each needs no copy.
    parts = [
        F.scaled_dot_product_attention(query[:, g::groups], keys, values, attn_mask=mask, scale=scale)
        for g in range(groups)
    ]
    return torch.stack(parts, dim=2).flatten(1, 2)


def causal_mask(queries: int, tokens: int, device: torch.device, rows: slice = slice(None)) -> Tensor:
    """Bool `[1, 1, Q, N]`: the last query sees everything. Of the queries only those in `rows`."""
    own = torch.arange(tokens - queries, tokens, device=device)[rows].view(-1, 1)
    return (torch.arange(tokens, device=device) <= own)[None, None]


def _explicit(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    mask: Tensor | None,
    softcap: float | None,
    sink_logits: Tensor | None,
    causal: bool,
) -> Tensor:
    """The formula written out, a block of queries at a time; torch's fused call knows no softcap or sinks."""
    batch, heads, queries, _ = query.shape
    tokens = keys.shape[2]
    block = max(1, _LOGITS_PER_CHUNK // max(1, batch * heads * tokens))
    outputs = []
    for start in range(0, queries, block):
        rows = slice(start, start + block)
        if mask is None and causal:
            part_mask = causal_mask(queries, tokens, query.device, rows)
        else:
            part_mask = mask if mask is None or mask.shape[2] == 1 else mask[:, :, rows]
        outputs.append(
            _explicit_block(query[:, :, rows], keys, values, scale, part_mask, softcap, sink_logits)
        )
    return torch.cat(outputs, dim=2)


def _explicit_block(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    mask: Tensor | None,
    softcap: float | None,
    sink_logits: Tensor | None,
) -> Tensor:
    grouped = query.unflatten(1, (keys.shape[1], -1))  # [B, Hkv, G, Q, D]
    logits = grouped.float() @ keys.unsqueeze(2).float().transpose(-1, -2) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if mask is not None:
        logits = logits.masked_fill(~mask.unsqueeze(2), -torch.inf)
    if sink_logits is not None:
        sinks = sink_logits.float().view(1, keys.shape[1], -1, 1, 1).expand(*logits.shape[:-1], 1)
        weights = torch.cat([logits, sinks], dim=-1).softmax(-1)[..., :-1]
    else:
        weights = logits.softmax(-1)
    if mask is not None:
        # A padding query sees nothing; its row is unused, but NaN there would spread.
        weights = weights.masked_fill(~mask.any(-1, keepdim=True).unsqueeze(2), 0.0)
    return (weights @ values.unsqueeze(2).float()).to(query.dtype).flatten(1, 2)
