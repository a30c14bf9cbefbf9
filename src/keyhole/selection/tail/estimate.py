"""Attention over what a step did not read, estimated by cluster.

A cluster's tokens are taken to have its mean value, and together the weight that their logits have: those
that an index knows of each token, or that of their mean key and of the variance about it. What is read is
taken out of sums and counts, so that nothing is left where everything is read.

Legend: B batch, H query heads, Hkv KV heads, G = H / Hkv, N tokens, S tokens read, C clusters, D head size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from keyhole.attention import Logits, Part
from keyhole.kernels.pq.tables import softcapped
from keyhole.selection.quantisers.uncertainty import logit_variance
from keyhole.selection.tail.clusters import Clusters
from keyhole.storage import Storage


class Known(NamedTuple):
    """Tokens whose attention is exact.

    Attributes:
        slots: int32 `[B, Hkv, S]`.
        meant: bool `[B, Hkv, S]`, false for filling; of the others each comes once.
    """

    slots: Tensor
    meant: Tensor


class _Taken(NamedTuple):
    """What is read of the clusters: `labels [B, Hkv, S]`, the count of clusters where none; tokens left."""

    labels: Tensor
    left: Tensor
    keys: Tensor
    values: Tensor


def tail_part(
    query: Tensor,
    clusters: Clusters,
    storage: Storage,
    known: Known,
    logits: Logits,
    token_logits: Tensor | None = None,
) -> Part:
    """Attention of `query [B, H, D]` over what is summarised and not `known`; out `[B, H, E]`, lse `[B, H]`.

    Args:
        token_logits: float32 `[B, Hkv, G, n]`, estimates for the first slots, behind which all are known.
    """
    taken = _taken(clusters, storage, known)
    grouped = query.unflatten(1, (taken.left.shape[1], -1)).float()
    if token_logits is None:
        each = _by_means(grouped, clusters, taken, logits)
    else:
        each = _by_tokens(token_logits, clusters, known, taken.left)
    left = taken.left.unsqueeze(2)
    logs = (each + left.clamp(min=1).log()).masked_fill(left == 0, -torch.inf)
    lse = logs.logsumexp(-1)
    base = lse.masked_fill(lse == -torch.inf, 0.0).unsqueeze(-1)
    weights = (each.masked_fill(left == 0, -torch.inf) - base).exp()
    places = taken.labels.unsqueeze(2).expand(*weights.shape[:3], -1)
    apart = torch.nn.functional.pad(weights, (0, 1)).gather(-1, places)
    out = weights @ clusters.values.float() - apart @ taken.values.float()
    return Part(out.flatten(1, 2).to(query.dtype), lse.flatten(1, 2))


def _taken(clusters: Clusters, storage: Storage, known: Known) -> _Taken:
    count = clusters.counts.shape[-1]
    inside = known.meant & (known.slots < clusters.length)
    slots = known.slots.long().masked_fill(~inside, 0)
    labels = clusters.labels.gather(-1, slots).long()
    labels = labels.masked_fill(~inside | (labels < 0), count)
    gone = labels.new_zeros(*labels.shape[:2], count + 1).scatter_add_(-1, labels, inside.long())
    return _Taken(labels, clusters.counts - gone[..., :count], *storage.picked(slots))


def _by_means(query: Tensor, clusters: Clusters, taken: _Taken, logits: Logits) -> Tensor:
    """The logit `[B, Hkv, G, C]` that a token left in a cluster has, by the mean key of these."""
    read = query @ taken.keys.float().transpose(-1, -2)
    products = query @ clusters.keys.float().transpose(-1, -2)
    places = taken.labels.unsqueeze(2).expand(read.shape)
    gone = read.new_zeros(*read.shape[:3], products.shape[-1] + 1).scatter_add_(-1, places, read)
    means = (products - gone[..., :-1]) / taken.left.clamp(min=1).unsqueeze(2)
    spread = logit_variance(query, clusters.moment, logits.scale) / 2
    return softcapped(means * logits.scale, logits.softcap) + spread.unsqueeze(-1)


def _by_tokens(estimates: Tensor, clusters: Clusters, known: Known, left: Tensor) -> Tensor:
    """The logit `[B, Hkv, G, C]` of which a token left in a cluster has, by what is known of each."""
    count, tokens = left.shape[-1], estimates.shape[-1]
    labels = clusters.labels[..., :tokens].long()
    read = torch.zeros(*labels.shape[:2], tokens + 1, dtype=torch.bool, device=labels.device)
    read.scatter_(-1, known.slots.long().masked_fill(~known.meant, tokens).clamp(max=tokens), True)
    gone = (read[..., :tokens] | (labels < 0)).unsqueeze(2)
    estimates = estimates.masked_fill(gone, -torch.inf)
    most = estimates.amax(-1, keepdim=True)
    most = most.masked_fill(most == -torch.inf, 0.0)
    places = labels.masked_fill(labels < 0, count).unsqueeze(2).expand(estimates.shape)
    sums = estimates.new_zeros(*estimates.shape[:3], count + 1)
    sums.scatter_add_(-1, places, (estimates - most).exp())
    return sums[..., :count].log() + most - left.clamp(min=1).unsqueeze(2).log()
