"""Softmax attention over disjoint parts, put together by their log-sum-exp."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from keyhole import kernels
from keyhole.attention.logits import Logits


class Part(NamedTuple):
    """Attention over some of the tokens: `out [..., D]`; float32 `lse [...]`, the log-sum-exp of its logits.

    A part over no token has out 0 and lse -inf.
    """

    out: Tensor
    lse: Tensor


def merge(first: Part, second: Part) -> Part:
    """Attention over the union of two disjoint parts."""
    return Part(*kernels.merge_attention(*first, *second))


def add_sink_logits(part: Part, logits: Logits) -> Part:
    """Let the sink logits, where there are any, take their share of the mass of a part `[..., H]`."""
    if logits.sink_logits is None:
        return part
    lse = logits.with_sinks(part.lse)
    return Part((part.out.float() * (part.lse - lse).exp().unsqueeze(-1)).to(part.out.dtype), lse)
