"""Lloyd's k-means, batched: every KV head and every sub-space of a layer in one call."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from keyhole import kernels

_ROUNDS = 100  # of draws apart, at least
_PIECE = 8192  # points whose distances are held at once


def kmeans(
    points: Tensor,
    clusters: int,
    *,
    iterations: int,
    generator: torch.Generator,
    spread: bool = False,
    spherical: bool = False,
    tolerance: float = 0.0,
) -> Tensor:
    """Cluster each problem of a batch by squared Euclidean distance, or by the cosine.

    Starts from distinct rows drawn at random. A cluster left empty is moved to the point farthest from its
    centroid, as scikit-learn does, so that no centroid is wasted.

    Args:
        points: float32 `[P, T, D]`, P independent problems of T points; T >= clusters.
        spread: start from rows drawn in turn, by their squared distance to the nearest drawn before
            (k-means++, Arthur and Vassilvitskii 2007), a hundredth of them at once where there are many.
        spherical: centroids are means of length one, of which the nearest is that of the largest cosine.
        tolerance: a problem stops when its centroids, taken as one vector, move no further than that.

    Returns:
        Centroids, float32 `[P, clusters, D]`.

    Raises:
        ValueError: fewer points than clusters.
    """
    if points.shape[1] < clusters:
        raise ValueError(f"{points.shape[1]} points cannot start {clusters} clusters; use fewer bits")
    start = (_drawn_apart if spread else _drawn)(points, clusters, generator)
    centroids = F.normalize(start, dim=-1) if spherical else start
    settled = torch.zeros(len(points), 1, 1, dtype=torch.bool, device=points.device)
    for _ in range(iterations):
        labels = kernels.kmeans_assign(points, centroids).long()
        means = _means(points, labels, centroids)
        means = F.normalize(means, dim=-1) if spherical else means
        before, centroids = centroids, means.where(~settled, centroids)
        if tolerance:
            moved = (centroids - before).square().sum((1, 2), keepdim=True)
            settled = moved <= tolerance**2
            if settled.all():
                break
    return centroids


def _drawn(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    start = torch.randperm(points.shape[1], generator=generator)[:clusters]
    return points[:, start.to(points.device)].clone()


def _drawn_apart(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    problems = torch.arange(len(points), device=points.device).unsqueeze(1)
    chosen = torch.randint(points.shape[1], (len(points), 1), generator=generator).to(points.device)
    drawn, distances = [points[problems, chosen]], points.new_full(points.shape[:2], torch.inf)
    while (missing := clusters - sum(part.shape[1] for part in drawn)) > 0:
        distances = distances.minimum(_nearest(points, drawn[-1]))
        total, count = distances.cumsum(-1, dtype=torch.float64), min(max(1, clusters // _ROUNDS), missing)
        wanted = torch.rand(len(points), count, generator=generator, dtype=torch.float64).to(points.device)
        chosen = torch.searchsorted(total, wanted * total[:, -1:], right=True)
        # Where every point is drawn already, all distances are zero; a cluster left empty is moved later.
        drawn.append(points[problems, chosen.clamp(max=points.shape[1] - 1)])
    return torch.cat(drawn, dim=1)


def _nearest(points: Tensor, drawn: Tensor) -> Tensor:
    """Squared distances `[P, T]` to the nearest of `drawn [P, C, D]`."""
    if drawn.shape[1] == 1:
        return (points - drawn).square().sum(-1)
    parts = [torch.cdist(part, drawn).amin(-1) for part in points.split(_PIECE, dim=1)]
    return torch.cat(parts, dim=1).square()


def _means(points: Tensor, labels: Tensor, centroids: Tensor) -> Tensor:
    problems, clusters, width = centroids.shape
    flat = (labels + torch.arange(problems, device=labels.device).unsqueeze(1) * clusters).flatten()
    sums = torch.zeros(problems * clusters, width, device=points.device)
    sums.index_add_(0, flat, points.flatten(0, 1))
    counts = torch.bincount(flat, minlength=problems * clusters).view(problems, clusters)
    means = sums.view_as(centroids) / counts.clamp(min=1).unsqueeze(-1)
    return _reseed(means, counts == 0, points, labels)


def _reseed(means: Tensor, empty: Tensor, points: Tensor, labels: Tensor) -> Tensor:
    """Put the empty clusters of a problem on its worst-served points, each on another."""
    problem, cluster = empty.nonzero(as_tuple=True)
    if problem.numel() == 0:
        return means
    served_by = means.gather(1, labels.unsqueeze(-1).expand_as(points))
    errors = (points - served_by).square().sum(-1)
    worst = errors.topk(int(empty.sum(1).max()), dim=1).indices
    nth = empty.cumsum(1)[problem, cluster] - 1
    means[problem, cluster] = points[problem, worst[problem, nth]]
    return means
