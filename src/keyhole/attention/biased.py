"""Attention whose logits have a bias for each key: `scale * q . k + e` (NOSA).

With `e` as one more channel of a key, and `1 / scale` as that of every query, a biased logit is a product
like all others, so that every kernel computes it. Both numbers are split into two of the keys' type, so that
half precision rounds neither.

Legend: B batch, H query heads, Hkv KV heads, G = H / Hkv, Q queries, N tokens, D and E size of keys and of
values.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from keyhole.attention.dense import causal_mask, dense_attention
from keyhole.attention.logits import Logits
from keyhole.attention.merge import Part
from keyhole.kernels.pq.tables import softcapped

CHANNELS = 3  # of a bias: high part, low part, and the high part again for the low one of the scale
_ALIGNED = 8  # channels, as fused calls want them
_WRITTEN_OUT = 1 << 24  # logits at a time


def with_bias(keys: Tensor, bias: Tensor) -> Tensor:
    """`keys [..., D]` with the channels of their `bias [...]`, `[..., D + CHANNELS]`."""
    high, low = _split(bias, keys.dtype)
    return torch.cat([keys, torch.stack([high, low, high], dim=-1)], dim=-1)


def bias_of(keys: Tensor) -> Tensor:
    """The bias float32 `[...]` of keys made by `with_bias`."""
    return keys[..., -CHANNELS].float() + keys[..., 1 - CHANNELS].float()


def asking_biased(query: Tensor, scale: float) -> Tensor:
    """`query [..., D]` for keys made by `with_bias`, `[..., D + CHANNELS]`."""
    high, low = _split(torch.tensor(1 / scale, device=query.device), query.dtype)
    return torch.cat([query, torch.stack([high, high, low]).expand(*query.shape[:-1], CHANNELS)], dim=-1)


def biased_prompt_attention(
    query: Tensor, keys: Tensor, values: Tensor, logits: Logits, mask: Tensor | None
) -> Tensor:
    """As `dense_attention`, of `query [B, H, Q, D]` over keys made by `with_bias`; returns `[B, H, Q, E]`."""
    if logits.softcap is not None:
        return _by_parts(query, keys, values, logits, mask)
    # Fused calls want one size.
    size = values.shape[-1]
    width = -(-max(keys.shape[-1], size) // _ALIGNED) * _ALIGNED
    asked, held, given = (
        F.pad(part, (0, width - part.shape[-1]))
        for part in (asking_biased(query, logits.scale), keys, values)
    )
    return dense_attention(asked, held, given, mask=mask, **logits._asdict())[..., :size]


def biased_attention(query: Tensor, keys: Tensor, values: Tensor, logits: Logits, shown: Tensor) -> Part:
    """The formula written out: `query [B, H, Q, D]` over keys made by `with_bias`, without sink logits.

    Args:
        shown: bool `[B or 1, Hkv or 1, Q or 1, N]`, where a query may look.
    """
    plain, bias, shown = keys[..., :-CHANNELS].float(), bias_of(keys), shown.unsqueeze(2)
    grouped = query.unflatten(1, (keys.shape[1], -1)).float()
    raised = softcapped(grouped @ plain.unsqueeze(2).mT * logits.scale, logits.softcap)
    raised = (raised + bias[:, :, None, None]).masked_fill(~shown, -torch.inf)
    lse = raised.logsumexp(-1)
    weights = (raised - lse.unsqueeze(-1)).exp().masked_fill(~shown, 0.0)
    out = weights @ values.unsqueeze(2).float()
    return Part(out.to(query.dtype).flatten(1, 2), lse.flatten(1, 2))


def _by_parts(query: Tensor, keys: Tensor, values: Tensor, logits: Logits, mask: Tensor | None) -> Tensor:
    """`biased_attention` with sink logits, some queries at a time."""
    queries, tokens = query.shape[2], keys.shape[2]
    step, out = max(1, _WRITTEN_OUT // (query.shape[0] * query.shape[1] * tokens)), []
    for begin in range(0, queries, step):
        rows = slice(begin, begin + step)
        shown = causal_mask(queries, tokens, query.device, rows) if mask is None else mask[:, :, rows]
        part = biased_attention(query[:, :, rows], keys, values, logits, shown)
        if logits.sink_logits is not None:
            lse = torch.logaddexp(part.lse, logits.sink_logits.float().view(-1, 1))
            part = Part(part.out * (part.lse - lse).exp().unsqueeze(-1).to(part.out.dtype), lse)
        out.append(part.out)
    return torch.cat(out, dim=2)


def _split(numbers: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two numbers of a type whose sum is nearly each float32 number."""
    high = numbers.to(dtype)
    return high, (numbers - high.float()).to(dtype)
