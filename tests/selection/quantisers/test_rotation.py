import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.selection.quantisers.kmeans import kmeans
from keyhole.selection.quantisers.rotation import balanced_rotation
from tests import oracles


def anisotropic(rows, count, size, seed=0, power=1.0):
    """Keys whose variance falls as a power law along hidden axes, the largest all in the first channels."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.arange(1, size + 1).float().pow(-power)
    return torch.randn(rows, count, size, generator=generator) * spread


@settings(max_examples=25)
@given(
    st.sampled_from([(8, 1), (8, 2), (8, 8), (24, 3), (64, 16), (128, 4)]),
    st.sampled_from([1, 5, 300]),
    st.integers(0, 99),
)
def test_orthogonal_for_any_keys(shape, count, seed):
    size, subspaces = shape
    keys = anisotropic(2, count, size, seed)
    rotation = balanced_rotation(keys, subspaces)
    identity = torch.eye(size).expand(2, -1, -1)
    torch.testing.assert_close(rotation @ rotation.transpose(1, 2), identity, rtol=0, atol=1e-4)
    query = torch.randn(2, 3, size)
    torch.testing.assert_close(
        (query @ rotation) @ (keys @ rotation).transpose(1, 2),
        query @ keys.transpose(1, 2),
        rtol=1e-3,
        atol=1e-3,
    )


@pytest.mark.parametrize("keys", [torch.zeros(1, 9, 8), torch.ones(1, 9, 8), torch.full((1, 1, 8), 1e4)])
def test_keys_without_variance(keys):
    rotation = balanced_rotation(keys, 4)
    torch.testing.assert_close(rotation @ rotation.transpose(1, 2), torch.eye(8)[None], rtol=0, atol=1e-4)


def test_subspaces_share_the_variance():
    keys = anisotropic(1, 4000, 32, power=1.5)
    variances = (keys @ balanced_rotation(keys, 4)).var(1).view(4, 8)
    products = variances.log().sum(1)
    plain = keys.var(1).view(4, 8).log().sum(1)
    assert float(products.max() - products.min()) < 0.1 * float(plain.max() - plain.min())


def test_every_axis_is_dealt_once():
    keys = anisotropic(3, 500, 24)
    sorted_variances = (keys @ balanced_rotation(keys, 3)).var(1).sort(1).values
    principal = torch.linalg.eigvalsh(torch.stack([row.T.cov() for row in keys]))
    torch.testing.assert_close(sorted_variances, principal, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("subspaces", "bits"), [(4, 4), (8, 4), (2, 6)])
def test_quantises_anisotropic_keys_better(subspaces, bits, seed):
    keys = anisotropic(1, 1500, 32, seed=seed)

    def quantisation_error(points):
        pieces = points.unflatten(-1, (subspaces, -1)).transpose(1, 2).flatten(0, 1).contiguous()
        centroids = kmeans(pieces, 2**bits, iterations=8, generator=torch.Generator().manual_seed(seed))
        distances = oracles.pq_distances(oracles.array(pieces), oracles.array(centroids)[:, None])
        return distances.min(-1).mean()

    assert quantisation_error(keys @ balanced_rotation(keys, subspaces)) < 0.8 * quantisation_error(keys)
