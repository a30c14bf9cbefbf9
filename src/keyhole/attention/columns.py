"""How much attention each key gets from many queries, without ever holding a square of weights.

Legend: B batch, H query heads, Hkv KV heads, G = H / Hkv, Q queries, N slots, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole import kernels
from keyhole.attention.logits import Logits

_WEIGHTS_PER_BLOCK = 1 << 22


def column_sums(
    query: Tensor,
    keys: Tensor,
    logits: Logits,
    *,
    filling: Tensor | None = None,
    noise: kernels.Noise | None = None,
    temperature: float = 1.0,
    by_head: bool = False,
) -> Tensor:
    """The attention that the newest tokens' `query [B, H, Q, D]` pay to each of `keys [B, Hkv, N, D]`.

    Float32 `[B, Hkv, N]`, the sum of causal softmax weights over queries and over the heads of a group. Query
    i belongs to slot N - Q + i; before slot 0 it is filling. Memory is bounded by blocks of queries, whose
    size does not matter.

    Args:
        filling: int64 `[B, Hkv]`, slots at the start that are no tokens: they get nothing and pay nothing.
        noise: added to the logits, of rows `B * Hkv`.
        temperature: logits and noise are divided by that.
        by_head: for each query head its own, `[B, Hkv, G, N]`; without noise.
    """
    batch, heads, tokens, _ = keys.shape
    rows, queries, begin = batch * heads, query.shape[2], tokens - query.shape[2]
    grouped = query.unflatten(1, (heads, -1)).flatten(0, 1).float() * logits.scale
    columns = keys.flatten(0, 1).float().transpose(1, 2)
    groups = grouped.shape[1]
    apart = groups if by_head else 1  # query heads of a group whose sums are apart
    sums = torch.zeros(rows * apart, tokens, device=keys.device)
    first = torch.zeros(rows, dtype=torch.long, device=keys.device)
    if filling is not None:
        first = filling.reshape(-1)
    first, sinks = first.repeat_interleave(apart), logits.sink_logits
    sinks = None if sinks is None else sinks.repeat(batch).view(rows * apart, -1)
    block = max(1, _WEIGHTS_PER_BLOCK // max(1, batch * query.shape[1] * tokens))
    for start in range(max(0, -begin), queries, block):
        part = grouped[:, :, start : start + block]
        seen = begin + start + part.shape[2]
        products = part.flatten(1, 2) @ columns[:, :, :seen]
        if logits.softcap is not None:
            products = products.div_(logits.softcap).tanh_().mul_(logits.softcap)
        kernels.add_columns(
            sums[:, :seen],
            products.view(rows * apart, groups // apart, part.shape[2], seen),
            first,
            noise=None if noise is None else noise.of(start, start + block, seen),
            temperature=temperature,
            sink_logits=sinks,
        )
    return sums.view(batch, heads, *((groups,) if by_head else ()), tokens)
