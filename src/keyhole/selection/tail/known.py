"""Estimated logits of tokens, put right by the exact mean of their cluster.

Legend: B batch, Hkv KV heads, G query heads of each, N slots before the window, C clusters.
"""

from __future__ import annotations

from torch import Tensor

from keyhole.kernels.pq.tables import softcapped
from keyhole.kernels.tail.reference import summed_by
from keyhole.selection.base import Estimates, Means, Step
from keyhole.selection.tail.clusters import Clusters


def by_cluster(known: Estimates, clusters: Clusters, step: Step) -> Estimates:
    """`known` with logits whose mean over a cluster is that of its mean key, and clusters' mean values.

    An index errs for a cluster's tokens alike, so that only differences within one are taken from it.
    """
    slots, (batch, heads) = known.logits.shape[-1], known.logits.shape[:2]
    labels = clusters.labels[..., :slots]
    flat, counts = labels.flatten(0, 1), clusters.counts.clamp(min=1).float().unsqueeze(-1)
    query = step.query.float().unflatten(1, (heads, -1))
    means = softcapped(query @ (clusters.keys.float() / counts).mT * step.logits.scale, step.logits.softcap)
    logits = known.logits.flatten(0, 1)
    inside = (flat >= 0).float().unsqueeze(1)
    of_index = summed_by(logits, flat, counts.shape[2]) / summed_by(inside, flat, counts.shape[2]).clamp(
        min=1
    )
    moved = (means.flatten(0, 1) - of_index).gather(-1, _places(flat, logits))
    right = (logits + moved * inside).unflatten(0, (batch, heads))
    return known._replace(logits=right, means=Means(labels, clusters.values.float() / counts))


def _places(labels: Tensor, logits: Tensor) -> Tensor:
    return labels.long().clamp(min=0).unsqueeze(1).expand_as(logits)
