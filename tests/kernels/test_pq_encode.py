"""Nearest centroids: the label is that of a least distance, whatever the dtype, size and strides."""

import pytest
import torch
from torch import Tensor

from keyhole import kernels
from tests.kernels.cases import strided

SIZES = [1, 31, 63, 64, 65, 100, 2000]


def assert_nearest(labels: Tensor, points: Tensor, centroids: Tensor) -> None:
    """Each label's squared distance is the least one, up to float32 rounding of the terms compared."""
    distances = torch.cdist(points.double(), centroids.double()).square()
    found = distances.gather(-1, labels.long()[..., None])[..., 0]
    size = points.double().square().sum(-1) + centroids.double().square().sum(-1).amax(-1)[:, None]
    assert ((found - distances.amin(-1)) <= 1e-6 * points.shape[-1] ** 0.5 * size).all()


@pytest.mark.parametrize("tokens", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_labels_are_nearest(any_impl, tokens, dtype):
    tokens = min(tokens, 200) if any_impl == "triton" else tokens
    points, centroids = torch.randn(2, tokens, 24).to(dtype), torch.randn(2, 21, 24)
    labels = kernels.kmeans_assign(points, centroids, impl=any_impl)
    assert labels.dtype == torch.int32
    assert_nearest(labels, points, centroids)


@pytest.mark.parametrize(("subspaces", "bits", "width"), [(16, 4, 8), (4, 8, 5), (1, 1, 3), (3, 6, 1)])
def test_codes_are_nearest_in_each_subspace(any_impl, subspaces, bits, width):
    keys = strided(torch.randn(3, 65, subspaces * width))
    codebooks = torch.randn(3, subspaces, 1 << bits, width)
    codes = kernels.pq_encode(keys, codebooks, impl=any_impl)
    assert codes.shape == (3, 65, subspaces)
    for m in range(subspaces):
        assert_nearest(codes[..., m], keys[..., m * width : (m + 1) * width], codebooks[:, m])


def test_ties_go_to_the_lower_label(any_impl):
    centroids = torch.tensor([[[1.0], [0.0], [0.0], [1.0], [0.0]]])
    labels = kernels.kmeans_assign(torch.tensor([[[0.0], [1.0], [0.4]]]), centroids, impl=any_impl)
    assert labels.tolist() == [[1, 0, 1]]


def test_no_points(any_impl):
    assert kernels.pq_encode(torch.zeros(2, 0, 8), torch.zeros(2, 2, 16, 4), impl=any_impl).shape == (2, 0, 2)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="do not fit codebooks"):
        kernels.pq_encode(torch.zeros(2, 5, 9), torch.zeros(2, 2, 16, 4))
    with pytest.raises(ValueError, match="points"):
        kernels.kmeans_assign(torch.zeros(2, 5, 9), torch.zeros(2, 4, 8))
