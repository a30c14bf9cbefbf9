"""Attention over clusters without what is read: each token left has the mean key and value of these.

Shapes: R rows (batch x KV heads), G query heads of a KV head, D head size, E size of values, C clusters,
S slots that are read, cap slots of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.kernels.pq.tables import softcapped
from keyhole.kernels.tail.types import Read, Summed


def tail_attention(
    query: Tensor,
    summed: Summed,
    read: Read,
    spread: Tensor | None = None,
    *,
    scale: float,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention, float32 `[R, G, E]`, of `query [R, G, D]` over the rest, and its log-sum-exp `[R, G]`.

    Sums and counts of clusters are reduced by what is read. A row of which nothing is left gives 0 and -inf.

    Args:
        spread: float32 `[R, G, C]`, added to the logits of mean keys; None is nothing.
    """
    query = query.float()
    keys, left = _gathered(read.keys, read.places), left_over(summed.counts, read.labels).unsqueeze(1)
    products = query @ summed.keys.float().transpose(1, 2)
    products = products - summed_by(query @ keys.transpose(1, 2), read.labels, products.shape[-1])
    logits = softcapped(products / left.clamp(min=1) * scale, softcap)
    logits = (logits if spread is None else logits + spread).masked_fill(left == 0, -torch.inf)
    lse = (logits + left.clamp(min=1).log()).logsumexp(-1)
    weights = (logits - lse.masked_fill(lse == -torch.inf, 0.0).unsqueeze(-1)).exp()
    labels = read.labels.long()
    places = labels.clamp(min=0).unsqueeze(1).expand(-1, weights.shape[1], -1)
    apart = weights.gather(-1, places).masked_fill((labels < 0).unsqueeze(1), 0.0)
    return weights @ summed.values.float() - apart @ _gathered(read.values, read.places), lse


def corrected(
    estimates: Tensor,
    query: Tensor,
    summed: Summed,
    labels: Tensor,
    *,
    scale: float,
    softcap: float | None = None,
) -> Tensor:
    """Logits `[R, G, N]`: `estimates`, moved so that their mean over each cluster is its mean key's logit.

    What an index errs for all tokens of a cluster alike is gone then; differences within one are kept.

    Args:
        estimates: float32 `[R, G, N]`.
        query: `[R, G, D]`.
        labels: integers `[R, N]`; those in no cluster, which are negative, keep their estimates.
    """
    counts = summed.counts.clamp(min=1).unsqueeze(1)
    exact = softcapped(query.float() @ summed.keys.float().transpose(1, 2) / counts * scale, softcap)
    there = summed_by((labels >= 0).float().unsqueeze(1), labels, counts.shape[-1]).clamp(min=1)
    missing = exact - summed_by(estimates, labels, counts.shape[-1]) / there
    places = labels.long().clamp(min=0).unsqueeze(1).expand(estimates.shape)
    return estimates + missing.gather(-1, places).masked_fill((labels < 0).unsqueeze(1), 0.0)


def left_over(counts: Tensor, labels: Tensor) -> Tensor:
    """Tokens `[R, C]` left of `counts [R, C]` when those of `labels [R, S]` are taken out."""
    gone = summed_by((labels >= 0).float().unsqueeze(1), labels, counts.shape[-1])
    return counts - gone.squeeze(1).to(counts.dtype)


def summed_by(numbers: Tensor, labels: Tensor, clusters: int) -> Tensor:
    """Sums `[R, G, C]` of `numbers [R, G, S]` by labels `[R, S]`, of which negative ones are left out."""
    sums = numbers.new_zeros(*numbers.shape[:2], clusters + 1)
    places = labels.long().masked_fill(labels < 0, clusters).unsqueeze(1).expand(numbers.shape)
    return sums.scatter_add_(-1, places, numbers)[..., :clusters]


def _gathered(rows: Tensor, places: Tensor) -> Tensor:
    """Rows `[R, S, D]` of `rows [R, cap, D]`, float32."""
    index = torch.arange(len(rows), device=rows.device).unsqueeze(1)
    return rows[index, places.long()].float()
