import pytest
import torch

from keyhole import kernels
from keyhole.selection.quantisers.product import Codes, decode, fit, fit_rotated

CODES = Codes(subspaces=16, bits=4, iterations=6)


def steep(power, size=64, count=3000, seed=0):
    """Keys whose variance falls steeply along hidden axes, and those axes with their deviations."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.arange(1, size + 1).float().pow(-power)
    axes = torch.linalg.qr(torch.randn(size, size, generator=generator)).Q * (spread / spread.norm())[:, None]
    return torch.randn(1, count, size, generator=generator) @ axes * size**0.5, axes


def distortion(fitted, keys, queries):
    """Mean squared error of the products with `queries [N, D]`, from the codes themselves."""
    points = keys if fitted.rotation is None else keys @ fitted.rotation
    books = fitted.codebooks
    residuals = points - decode(kernels.pq_encode(points, books), books)
    if fitted.rotation is not None:
        residuals = residuals @ fitted.rotation.transpose(1, 2)
    return float((queries @ residuals[0].T).square().mean())


def moment(queries):
    return (queries.T @ queries / len(queries))[None]


@pytest.mark.parametrize("power", [0.5, 1.5])
@pytest.mark.parametrize("aligned", [False, True])
def test_the_rotation_suits_the_queries(power, aligned):
    keys, axes = steep(power)
    queries = torch.randn(200, 64, generator=torch.Generator().manual_seed(1))
    queries = queries @ axes if aligned else queries
    plain, blind = fit(keys, CODES), fit_rotated(keys, CODES, None)
    seeing = fit_rotated(keys, CODES, moment(queries))
    errors = [distortion(each, keys, queries) for each in (plain, blind, seeing)]
    assert errors[2] <= 1.001 * min(errors[0], errors[1])
    if power == 1.5 and aligned:
        assert errors[2] < 0.7 * errors[1], "a dominant axis is spread over sub-spaces"


def test_each_row_has_its_own_choice():
    keys, axes = steep(1.5)
    queries = torch.randn(200, 64, generator=torch.Generator().manual_seed(1))
    moments = [moment(queries), moment(queries @ axes)]
    together = fit_rotated(keys.repeat(2, 1, 1), CODES, torch.cat(moments))
    for row in range(2):
        alone = fit_rotated(keys, CODES, moments[row])
        for ours, theirs in zip(together, alone, strict=True):
            torch.testing.assert_close(ours[row], theirs[0], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(together.rotation[0], together.rotation[1], atol=0.1)


@pytest.mark.parametrize("queries", [None, torch.eye(64)[None]])
def test_rotations_are_orthogonal_and_residuals_are_measured(queries):
    keys, _ = steep(1.0, count=500)
    fitted = fit_rotated(keys, CODES, queries)
    rotation = fitted.rotation[0]
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(64), rtol=0, atol=1e-4)
    torch.testing.assert_close(
        float(fitted.residuals[0].diagonal().mean()),
        distortion(fitted, keys, torch.eye(64)),
        rtol=1e-3,
        atol=0,
    )
