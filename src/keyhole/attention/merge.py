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
    # From the difference, so that the weights add up to one however large the logits are. Where both parts
    # are empty it is -inf - -inf; a weight of zero is meant.
    lead = (first.lse - second.lse).unsqueeze(-1)
    weights = [torch.sigmoid(gap).nan_to_num(0.0) for gap in (lead, -lead)]
    out = first.out.float() * weights[0] + second.out.float() * weights[1]
    return Part(out.to(first.out.dtype), torch.logaddexp(first.lse, second.lse))


def add_sink_logits(part: Part, sink_logits: Tensor) -> Part:
    """Let one more logit a head, `[H]` broadcast over the leading dimensions, take its share of the mass."""
    lse = torch.logaddexp(part.lse, sink_logits.float())
    return Part((part.out.float() * (part.lse - lse).exp().unsqueeze(-1)).to(part.out.dtype), lse)
