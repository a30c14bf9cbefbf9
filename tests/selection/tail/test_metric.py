"""Distances of tokens, against logits and values written out."""

import pytest
import torch

from keyhole.selection.tail.metric import factors, joined


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def squared(points):
    return (points[..., :, None, :] - points[..., None, :, :]).square().sum(-1)


def test_distances_are_differences_of_logits_and_values():
    keys, values, queries = draw(2, 3, 7, 6), draw(2, 3, 7, 5, seed=1), draw(2, 3, 50, 6, seed=2)
    moments = queries.mT @ queries / 50
    points = joined(keys, values, factors(moments))
    level = moments.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    logits = (queries @ keys.mT).double()  # `[2, 3, 50, 7]`
    apart = (logits[..., :, None] - logits[..., None, :]).square().mean(2) / level
    apart = apart + 0.1 * squared(keys.double())
    # The mean squared distance of two draws is twice the variance.
    apart = apart / apart.mean((-1, -2), keepdim=True) * 2
    of_values = squared(values.double())
    apart = apart + of_values / of_values.mean((-1, -2), keepdim=True) * 2
    torch.testing.assert_close(squared(points).double(), apart, rtol=1e-3, atol=1e-4)


def test_without_queries_all_axes_are_alike():
    keys, values = draw(1, 2, 9, 4), draw(1, 2, 9, 3, seed=1)
    torch.testing.assert_close(
        joined(keys, values, None), joined(keys, values, torch.eye(4).expand(1, 2, 4, 4))
    )


@pytest.mark.parametrize("level", [0.0, torch.nan, torch.inf, -1.0])
def test_moments_of_no_use(level):
    moments = torch.stack([torch.full((4, 4), level), torch.eye(4)]).view(1, 2, 4, 4)
    found = factors(moments)
    torch.testing.assert_close(found[0, 0], torch.eye(4))
    torch.testing.assert_close(found[0, 1], torch.eye(4) * 1.1**0.5)


def test_tokens_all_alike_are_no_division_by_zero():
    assert (joined(torch.ones(1, 1, 5, 4), torch.ones(1, 1, 5, 4), None) == 0).all()


def test_units_of_values_do_not_matter():
    keys, values = draw(1, 2, 9, 4), draw(1, 2, 9, 3, seed=1)
    torch.testing.assert_close(joined(keys, values, None), joined(keys * 8, values / 4, None))
