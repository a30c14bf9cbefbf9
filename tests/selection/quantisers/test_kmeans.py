import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from keyhole.selection.quantisers.kmeans import kmeans
from tests import oracles


class LargestTensor(TorchDispatchMode):
    """Notes the largest tensor that any torch operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.elements = max(self.elements, out.numel())
        return out


def fit(points, clusters, iterations=10, seed=0):
    return kmeans(points, clusters, iterations=iterations, generator=torch.Generator().manual_seed(seed))


def error(points, centroids):
    """Mean squared distance to the nearest centroid, for each problem."""
    return oracles.pq_distances(oracles.array(points), oracles.array(centroids)[:, None]).min(-1).mean((1, 2))


def blobs(problems, clusters, each, size=3):
    """Well-separated clusters of `each` points around known centres."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(problems, clusters, size, generator=generator) * 100
    points = centres.repeat_interleave(each, dim=1)
    return centres, points + 0.1 * torch.randn(points.shape, generator=generator)


def test_means_of_the_nearest_points():
    """Each step puts a centroid on the mean of the points nearest to it."""
    points = torch.randn(3, 63, 5, generator=torch.Generator().manual_seed(2))
    before, after = oracles.array(fit(points, 4, iterations=4)), oracles.array(fit(points, 4, iterations=5))
    labels = oracles.pq_codes(oracles.array(points), before[:, None])[..., 0]
    for problem in range(3):
        for cluster in range(4):
            mean = oracles.array(points)[problem, labels[problem] == cluster].mean(0)
            np.testing.assert_allclose(after[problem, cluster], mean, rtol=1e-4, atol=1e-5)


@settings(max_examples=20)
@given(st.integers(1, 4), st.sampled_from([1, 2, 7, 16]), st.integers(1, 16), st.integers(0, 99))
def test_more_iterations_never_fit_worse(problems, clusters, size, seed):
    points = torch.randn(problems, 100, size, generator=torch.Generator().manual_seed(seed))
    errors = [error(points, fit(points, clusters, iterations=count)) for count in (1, 2, 4, 8)]
    for worse, better in itertools.pairwise(errors):
        assert bool((better <= worse + 1e-5).all())


def test_the_same_seed_gives_the_same_centroids():
    points = torch.randn(4, 200, 8)
    assert torch.equal(fit(points, 16), fit(points, 16))


def test_problems_do_not_influence_each_other():
    points = torch.randn(3, 100, 4, generator=torch.Generator().manual_seed(0))
    together = fit(points, 8)
    far = torch.cat([points[:1], 50 + 9 * points[1:2], points[2:]])
    torch.testing.assert_close(fit(far, 8)[[0, 2]], together[[0, 2]])


def test_as_many_clusters_as_points():
    points = torch.randn(2, 16, 4)
    assert error(points, fit(points, 16)).max() < 1e-9


@pytest.mark.parametrize("clusters", [2, 17])
def test_too_few_points_are_refused(clusters):
    with pytest.raises(ValueError, match=f"{clusters - 1} points"):
        fit(torch.randn(1, clusters - 1, 4), clusters)


def test_equal_points_give_their_value():
    centroids = fit(torch.full((2, 50, 4), 3.0), 8)
    assert bool((centroids == 3).all())


def test_empty_clusters_are_moved_to_the_largest():
    """All starting points coincide, in a far corner; only reseeding can find the other clusters."""
    _centres, points = blobs(2, 4, 25)
    points[:, 25:] = points[:, 25:26]  # three of the four clusters collapse to one point
    far = torch.cat([points, points[:, :25] + 1000], dim=1)
    assert error(far, fit(far, 16, iterations=20)).max() < 0.1


def test_no_centroid_is_wasted_on_repeated_points():
    """Nine points in ten are equal; without reseeding most starts coincide and most centroids stay unused."""
    points = torch.cat(
        [torch.zeros(1, 900, 4), torch.randn(1, 100, 4, generator=torch.Generator().manual_seed(3))], 1
    )
    centroids = fit(points, 64, iterations=30)
    labels = oracles.pq_codes(oracles.array(points), oracles.array(centroids)[:, None])
    assert len(np.unique(labels)) > 32


def test_many_empty_clusters_need_little_memory():
    """Equal points leave all clusters but one empty; a row of points for each is 255 inputs."""
    points = torch.ones(8, 4096, 2)
    with LargestTensor() as seen:
        fit(points, 256, iterations=1)
    assert seen.elements <= 1 << 22


def test_a_distant_mean_does_not_hide_the_clusters():
    """Biased keys: the clusters differ by less than a thousandth of the norm."""
    _centres, points = blobs(1, 4, 25)
    assert error(points + 20_000, fit(points + 20_000, 16, iterations=20)).max() < 10
