"""Lloyd's k-means, batched: every KV head and every sub-space of a layer in one call."""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole import kernels


def kmeans(points: Tensor, clusters: int, *, iterations: int, generator: torch.Generator) -> Tensor:
    """Cluster each problem of a batch by squared Euclidean distance.

    Starts from distinct rows drawn at random. A cluster left empty is moved to a random point of the
    largest cluster, so that no centroid is wasted.

    Args:
        points: float32 `[P, T, D]`, P independent problems of T points; T >= clusters.

    Returns:
        Centroids, float32 `[P, clusters, D]`.

    Raises:
        ValueError: fewer points than clusters.
    """
    if points.shape[1] < clusters:
        raise ValueError(f"{points.shape[1]} points cannot start {clusters} clusters; use fewer bits")
    start = torch.randperm(points.shape[1], generator=generator)[:clusters]
    centroids = points[:, start.to(points.device)].clone()
    for _ in range(iterations):
        labels = kernels.kmeans_assign(points, centroids).long()
        centroids = _means(points, labels, centroids, generator)
    return centroids


def _means(points: Tensor, labels: Tensor, centroids: Tensor, generator: torch.Generator) -> Tensor:
    problems, clusters, width = centroids.shape
    flat = (labels + torch.arange(problems, device=labels.device).unsqueeze(1) * clusters).flatten()
    sums = torch.zeros(problems * clusters, width, device=points.device)
    sums.index_add_(0, flat, points.flatten(0, 1))
    counts = torch.bincount(flat, minlength=problems * clusters).view(problems, clusters)
    means = sums.view_as(centroids) / counts.clamp(min=1).unsqueeze(-1)
    return _reseed(means, counts, points, labels, generator)


def _reseed(
    means: Tensor, counts: Tensor, points: Tensor, labels: Tensor, generator: torch.Generator
) -> Tensor:
    """Put each empty cluster on a point of the largest cluster of its problem."""
    problem, cluster = (counts == 0).nonzero(as_tuple=True)
    if problem.numel() == 0:
        return means
    weights = (labels == counts.argmax(1, keepdim=True)).float()[problem]
    # One random order of the points for each empty cluster, so that hardly any point is drawn twice.
    draw = torch.rand(weights.shape, generator=generator).to(points.device)
    means[problem, cluster] = points[problem, (weights * (draw + 1)).argmax(1)]
    return means
