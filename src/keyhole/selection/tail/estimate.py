"""Attention over what a step did not read, estimated by cluster.

A cluster's tokens are taken to have its mean value, and together the weight of so many tokens with its mean
key; where an index knows a logit of each token, more by how much these differ. What is read is taken out of
sums and counts, so that nothing is left where everything is read.

Legend: B batch, H query heads, Hkv KV heads, R = B * Hkv, G = H / Hkv, N tokens, S tokens read, C clusters.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from keyhole.attention import Logits, Part
from keyhole.kernels.tail.reference import corrected, summed_by, tail_attention
from keyhole.kernels.tail.types import Read, Summed
from keyhole.selection.tail.clusters import Clusters
from keyhole.storage import Storage

_MOST = 64.0  # of a logit above the mean of its cluster, so that weights are finite


class Known(NamedTuple):
    """Tokens whose attention is exact.

    Attributes:
        slots: int32 `[B, Hkv, S]`.
        meant: bool `[B, Hkv, S]`, false for filling; of the others each comes once.
    """

    slots: Tensor
    meant: Tensor


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
    read = _read(clusters, storage, known)
    summed = _summed(clusters)
    grouped = query.reshape(len(read.labels), -1, query.shape[-1])
    spread = None if token_logits is None else _spread(token_logits.flatten(0, 1), clusters, known)
    out, lse = tail_attention(
        grouped, summed, read, spread, scale=logits.scale, softcap=logits.softcap
    )  # fmt: skip
    return Part(out.reshape(*query.shape[:2], -1).to(query.dtype), lse.reshape(query.shape[:2]))


def corrected_logits(estimates: Tensor, query: Tensor, clusters: Clusters, logits: Logits) -> Tensor:
    """`estimates [B, Hkv, G, n]` of an index for `query [B, H, D]`, put right by clusters' mean keys."""
    labels = clusters.labels[..., : estimates.shape[-1]].flatten(0, 1)
    moved = corrected(
        estimates.flatten(0, 1), query.reshape(len(labels), -1, query.shape[-1]), _summed(clusters), labels,
        scale=logits.scale, softcap=logits.softcap,
    )  # fmt: skip
    return moved.view(estimates.shape)


def _summed(clusters: Clusters) -> Summed:
    return Summed(*(part.flatten(0, 1) for part in (clusters.keys, clusters.values, clusters.counts)))


def _read(clusters: Clusters, storage: Storage, known: Known) -> Read:
    """What is known, with its clusters."""
    inside = known.meant & (known.slots < clusters.length)
    slots = known.slots.masked_fill(~inside, 0)
    labels = clusters.labels.gather(-1, slots.long()).masked_fill(~inside, -1)
    return Read(*(part.flatten(0, 1) for part in (*storage.picked(slots), labels)))


def _spread(estimates: Tensor, clusters: Clusters, known: Known) -> Tensor:
    """How much the logarithm of the mean weight of tokens left in a cluster is above their mean logit.

    Float32 `[R, G, C]`, by `estimates [R, G, n]` of logits. An index errs for a cluster's tokens alike, which
    their exact mean key makes up for, so only differences within a cluster are taken from it.
    """
    tokens, count = estimates.shape[-1], clusters.counts.shape[-1]
    labels, slots = clusters.labels[..., :tokens].flatten(0, 1), known.slots.flatten(0, 1).long()
    read = torch.zeros(len(labels), tokens + 1, dtype=torch.bool, device=labels.device)
    read.scatter_(-1, slots.masked_fill(~known.meant.flatten(0, 1), tokens).clamp(max=tokens), True)
    labels = labels.masked_fill(read[:, :tokens], -1)
    left = summed_by((labels >= 0).float().unsqueeze(1), labels, count).clamp(min=1)
    means = summed_by(estimates, labels, count) / left
    places = labels.long().clamp(min=0).unsqueeze(1).expand(estimates.shape)
    weights = (estimates - means.gather(-1, places)).clamp(max=_MOST).exp()
    return (summed_by(weights, labels, count) / left).log().clamp(min=0)
