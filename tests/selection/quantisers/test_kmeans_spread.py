"""k-means++ starts far apart."""

import torch

from keyhole.selection.quantisers.kmeans import kmeans


def clusters(count, each, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = 100 * torch.randn(2, count, 1, 4, generator=generator)
    return (centres + torch.randn(2, count, each, 4, generator=generator)).flatten(1, 2)


def fit(points, count, **options):
    return kmeans(points, count, generator=torch.Generator().manual_seed(0), **options)


def error(points, centroids):
    return torch.cdist(points, centroids).amin(-1).square().mean()


def test_finds_every_cluster_that_is_apart():
    points = clusters(12, 30)
    assert error(points, fit(points, 12, iterations=1, spread=True)) < 6
    assert error(points, fit(points, 12, iterations=1)) > 6


def test_fewer_distinct_points_than_clusters():
    points = torch.ones(1, 9, 3)
    points[0, 0] = 0
    centroids = fit(points, 5, iterations=3, spread=True)
    assert error(points, centroids) == 0


def test_stops_when_nothing_moves(monkeypatch):
    points, rounds = clusters(3, 20), []
    from keyhole import kernels

    assign = kernels.kmeans_assign
    monkeypatch.setattr(kernels, "kmeans_assign", lambda *args: rounds.append(1) or assign(*args))
    stopped = fit(points, 3, iterations=200, spread=True, tolerance=1e-4)
    assert len(rounds) < 20
    torch.testing.assert_close(stopped, fit(points, 3, iterations=200, spread=True))
