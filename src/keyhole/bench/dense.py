"""The dense calls that Keyhole is compared with."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from keyhole.tuning.timing import Candidate

FOLDED = "sdpa folded"
EXPANDED = "sdpa enable_gqa"


def dense_baselines(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> list[Candidate]:
    """One decode step of `query [B, H, 1, D]` over `keys`, `values [B, Hkv, N, D]` by torch.

    Folded, the query heads of a group are the rows of one call, which reads K and V once for each KV head:
    the honest baseline. With `enable_gqa` torch reads them once for each query head.
    """
    folded = query.reshape(len(query), keys.shape[1], -1, query.shape[-1])
    cache_bytes = keys.nbytes + values.nbytes
    tokens = keys.shape[2]
    calls = {
        FOLDED: lambda: F.scaled_dot_product_attention(folded, keys, values, scale=scale),
        EXPANDED: lambda: F.scaled_dot_product_attention(query, keys, values, scale=scale, enable_gqa=True),
    }
    return [Candidate(name, "torch", run, cache_bytes, tokens) for name, run in calls.items()]
