"""How much attention each key gets from many queries, without ever holding a square of weights.

Legend: B batch, H query heads, Hkv KV heads, G = H / Hkv, Q queries, N slots, D head size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from keyhole.attention.logits import Logits

_WEIGHTS_PER_BLOCK = 1 << 24

# From a block of logits `[B, Hkv, G, q, N]` and the number of its first query to logits to score by.
Perturb = Callable[[Tensor, int], Tensor]


def column_sums(
    query: Tensor,
    keys: Tensor,
    logits: Logits,
    *,
    filling: Tensor | None = None,
    perturb: Perturb | None = None,
    by_head: bool = False,
) -> Tensor:
    """The attention that the newest tokens' `query [B, H, Q, D]` pay to each of `keys [B, Hkv, N, D]`.

    Float32 `[B, Hkv, N]`, the sum of causal softmax weights over queries and over the heads of a group. Query
    i belongs to slot N - Q + i. Memory is bounded by blocks of queries, whose size does not matter.

    Args:
        filling: `[B, Hkv]`, slots at the start that are no tokens: they get nothing and pay nothing.
        perturb: changes logits before their softmax.
        by_head: for each query head its own, `[B, Hkv, G, N]`.
    """
    batch, heads, tokens, _ = keys.shape
    queries, begin = query.shape[2], tokens - query.shape[2]
    grouped = query.unflatten(1, (heads, -1))
    shape = (batch, heads, grouped.shape[2], tokens) if by_head else (batch, heads, tokens)
    sums = torch.zeros(shape, device=keys.device)
    slots = torch.arange(tokens, device=keys.device)
    block = max(1, _WEIGHTS_PER_BLOCK // max(1, batch * query.shape[1] * tokens))
    for start in range(0, queries, block):
        part = grouped[:, :, :, start : start + block]
        own = torch.arange(begin + start, begin + start + part.shape[3], device=keys.device)
        seen = slots <= own.view(-1, 1)
        if filling is not None:
            seen = seen & (slots >= filling[..., None, None])
        weights = _weights(part, keys, logits, seen, start, perturb)
        sums += weights.sum(dim=3 if by_head else (2, 3))
    return sums


def _weights(
    query: Tensor, keys: Tensor, logits: Logits, seen: Tensor, start: int, perturb: Perturb | None
) -> Tensor:
    """Softmax weights of `query [B, Hkv, G, q, D]`; `seen [q, N]` or `[B, Hkv, q, N]`."""
    products = query.float() @ keys.float().unsqueeze(2).transpose(-1, -2) * logits.scale
    if logits.softcap is not None:
        products = logits.softcap * torch.tanh(products / logits.softcap)
    if perturb is not None:
        products = perturb(products, start)
    seen = seen.unsqueeze(2) if seen.dim() == 4 else seen
    products = products.masked_fill(~seen, -torch.inf)
    lse = products.logsumexp(-1)
    total = logits.with_sinks(lse.flatten(1, 2).movedim(1, -1)).movedim(-1, 1).view_as(lse)
    # A query that sees nothing is filling.
    return (products - total.unsqueeze(-1)).exp().masked_fill((lse == -torch.inf).unsqueeze(-1), 0.0)
