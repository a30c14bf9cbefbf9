"""Sums held in 8 bits and in full."""

import pytest
import torch

from keyhole.selection.quantisers.sums import SummedRows
from tests.layers import Layer

SPEC = (
    "pqcache(budget=9, sinks=2, window=6, dense_below=0, subspaces=4, bits=3, iterations=2) + tail(tokens=5)"
)


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.int8, 1 / 254), (torch.bfloat16, 2**-8), (torch.float32, 0.0)]
)
def test_sums_are_off_by_their_rounding_at_most(dtype, most):
    rows, sums = SummedRows(dtype), draw(2, 3, 9, 7) * torch.logspace(-30, 30, 9).view(-1, 1)
    rows.append(sums[:, :, :4], sums.dtype)
    rows.append(sums[:, :, 4:], sums.dtype)
    assert rows.length == 9
    error = (rows.view().float() - sums).abs() / sums.abs().amax(-1, keepdim=True)
    assert error.max() <= most * 1.001
    assert (dtype == torch.float32) == (error.max() == 0)


def test_zeros_and_what_is_no_number():
    rows, sums = SummedRows(torch.int8), torch.ones(1, 1, 4, 3)
    sums[0, 0, 0] = 0
    sums[0, 0, 1, 2] = torch.nan
    sums[0, 0, 2, 0] = torch.inf
    rows.append(sums, sums.dtype)
    found = rows.view()[0, 0]
    assert (found[0] == 0).all()
    assert found[1].isnan().all()
    assert found[2].isnan().all()
    torch.testing.assert_close(found[3], torch.ones(3))


def test_a_layer_is_restored_cropped_and_reordered():
    layer = Layer(SPEC, batch=2, padding=[0, 9])
    layer.append(150)
    layer.attend()
    layer.append(12)
    layer.attend()
    held = layer.cache.state()
    fresh = Layer(SPEC, batch=2, padding=[0, 9])
    fresh.cache.restore({name: part.clone() for name, part in held.items()}, layer.cache.indexed)
    other, own = fresh.cache.selector.clusters, layer.cache.selector.clusters
    for one in (own, other):
        one.crop(155)
        one.reorder(torch.tensor([1, 0, 1]))
    assert own.length == 150
    assert own.keys.shape[:3] == own.values.shape[:3] == (3, 2, own.counts.shape[-1])
    for name, part in own.state().items():
        torch.testing.assert_close(other.state()[name], part)
        assert part.shape[0] == (len(own._pieces) if name == "pieces" else 3)
    # Two rows of 16 numbers, two scales and a count.
    assert other.cluster_bytes == own.counts.shape[-1] * (2 * 16 + 2 * 4 + 4)
