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
) -> Tensor:
    """The attention that the newest tokens' `query [B, H, Q, D]` pay to each of `keys [B, Hkv, N, D]`.

    Float32 `[B, Hkv, N]`, the sum of causal softmax weights over queries and over the heads of a group. Query
    i belongs to slot N - Q + i; before slot 0 it is filling. Memory is bounded by blocks of queries, whose
    size does not matter.

    Args:
        filling: int64 `[B, Hkv]`, slots at the start that are no tokens: they get nothing and pay nothing.
        noise: added to the logits, of rows `B * Hkv`.
        temperature: logits and noise are divided by that.
    """
    batch, heads, tokens, _ = keys.shape
    rows, queries, begin = batch * heads, query.shape[2], tokens - query.shape[2]
    grouped = query.unflatten(1, (heads, -1)).flatten(0, 1).float() * logits.scale
    columns = keys.flatten(0, 1).float().transpose(1, 2)
    sums = torch.zeros(rows, tokens, device=keys.device)
    first = torch.zeros(rows, dtype=torch.long, device=keys.device)
    if filling is not None:
        first = filling.reshape(-1)
    sinks = None if logits.sink_logits is None else logits.sink_logits.view(heads, -1).repeat(batch, 1)
    block = max(1, _WEIGHTS_PER_BLOCK // max(1, batch * query.shape[1] * tokens))
    for start in range(max(0, -begin), queries, block):
        part = grouped[:, :, start : start + block]
        seen = begin + start + part.shape[2]
        products = part.flatten(1, 2) @ columns[:, :, :seen]
        if logits.softcap is not None:
            products = products.div_(logits.softcap).tanh_().mul_(logits.softcap)
        kernels.add_columns(
            sums[:, :seen],
            products.view(*part.shape[:3], seen),
            first,
            noise=None if noise is None else noise.of(start, start + block, seen),
            temperature=temperature,
            sink_logits=sinks,
        )
    return sums.view(batch, heads, tokens)
