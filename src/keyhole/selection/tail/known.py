"""Estimated logits of tokens, put right by the exact mean of their cluster.

Legend: B batch, Hkv KV heads, G query heads of each, N slots before the window, C clusters.
"""

from __future__ import annotations

from keyhole.selection.base import Estimates, Means, Step
from keyhole.selection.tail.clusters import Clusters
from keyhole.selection.tail.estimate import corrected_logits


def by_cluster(known: Estimates, clusters: Clusters, step: Step) -> Estimates:
    """`known` with logits whose mean over a cluster is that of its mean key, and clusters' mean values.

    An index errs for a cluster's tokens alike, so that only differences within one are taken from it.
    """
    slots = known.logits.shape[-1]
    right = corrected_logits(known.logits, step.query, clusters, step.logits)
    counts = clusters.counts.clamp(min=1).float().unsqueeze(-1)
    return known._replace(
        logits=right, means=Means(clusters.labels[..., :slots], clusters.values.float() / counts)
    )
