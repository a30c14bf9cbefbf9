"""Softmax attention over disjoint parts, put together by their log-sum-exp."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Part(NamedTuple):
    """Attention over some of the tokens: `out [..., D]`; float32 `lse [...]`, the log-sum-exp of its logits.

    A part over no token has out 0 and lse -inf.
    """

    out: Tensor
    lse: Tensor


def merge(first: Part, second: Part) -> Part:
    """Attention over the union of two disjoint parts."""
    lse = torch.logaddexp(first.lse, second.lse)
    # Weights from the difference add up to one however large the logits are. Two empty parts have none; both
    # outs are zero then, so any weight will do.
    lead = (first.lse - second.lse).masked_fill(lse == -torch.inf, 0.0).unsqueeze(-1)
    out = first.out.float() * lead.sigmoid() + second.out.float() * (-lead).sigmoid()
    return Part(out.to(first.out.dtype), lse)


def add_sink_logits(part: Part, sink_logits: Tensor) -> Part:
    """Let one more logit a head, `[H]` broadcast over the leading dimensions, take its share of the mass."""
    lse = torch.logaddexp(part.lse, sink_logits.float())
    return Part((part.out.float() * (part.lse - lse).exp().unsqueeze(-1)).to(part.out.dtype), lse)
