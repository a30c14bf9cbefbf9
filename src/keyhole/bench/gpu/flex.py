"""torch's FlexAttention as a baseline, where it can be compiled."""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.tuning.timing import Candidate

FLEX = "flex_attention"


def flex_baseline(query: Tensor, keys: Tensor, values: Tensor, scale: float) -> list[Candidate]:
    """A decode step of `query [B, H, 1, D]` over `keys`, `values [B, Hkv, N, D]`; none where it fails."""
    if not query.is_cuda:
        return []
    from torch.nn.attention.flex_attention import flex_attention

    compiled = torch.compile(flex_attention, dynamic=False)

    def run() -> object:
        return compiled(query, keys, values, scale=scale, enable_gqa=True)

    try:
        run()
    except Exception:
        # Whatever stops torch's compiler is no fault of what is measured here.
        return []
    return [Candidate(FLEX, "torch", run, keys.nbytes + values.nbytes, keys.shape[2])]
