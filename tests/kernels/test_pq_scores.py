"""Estimated logits: the native scan equals the reference bit for bit."""

import pytest
import torch

from keyhole import kernels
from keyhole.kernels.pq.tables import largest_entry, pq_tables
from tests.kernels.cases import make_index


def assert_native_is_reference(index, n, **options):
    expected = kernels.pq_scores(*index.parts, n, scale=index.scale, impl="reference", **options)
    found = kernels.pq_scores(*index.parts, n, scale=index.scale, impl="native", **options)
    assert torch.equal(found, expected)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("n", [0, 1, 31, 63, 64, 65, 100, 1024, 2000])
@pytest.mark.parametrize("bits", [4, 8])
def test_sizes(n, bits):
    assert_native_is_reference(make_index(n=n, bits=bits), n)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("heads", [1, 2, 3, 4, 5, 7, 8, 64])
@pytest.mark.parametrize("bits", [4, 8])
def test_heads(heads, bits):
    assert_native_is_reference(make_index(n=130, heads=heads, bits=bits), 130)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize(
    ("subspaces", "bits", "width"),
    [(1, 4, 3), (16, 4, 8), (32, 4, 4), (7, 4, 2), (128, 4, 1), (16, 8, 8), (5, 6, 2)],
)
def test_subspaces(subspaces, bits, width):
    assert_native_is_reference(make_index(subspaces=subspaces, bits=bits, width=width), 300)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("bits", [4, 8])
def test_largest_sums_do_not_overflow(bits):
    subspaces = 16
    codebooks = torch.arange(1 << bits).float().view(1, 1, -1, 1).expand(1, subspaces, -1, 1)
    buffer = kernels.allocate_codes(1, 64, subspaces, bits).fill_(255)
    for sign in (1, -1):
        query = torch.full((1, 1, subspaces), float(sign))
        scores = kernels.pq_scores(query, codebooks, buffer, 64, scale=1.0, impl="native")
        assert scores.unique().tolist() == [sign * subspaces * ((1 << bits) - 1)]


@pytest.mark.usefixtures("level")
def test_softcap():
    index = make_index(spread=50.0)
    options = {"scale": index.scale, "softcap": 20.0}
    found, expected = (
        kernels.pq_scores(*index.parts, 300, impl=impl, **options) for impl in ("native", "reference")
    )
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("level")
def test_strided_operands():
    index = make_index(rows=3)
    wide = torch.full((3, index.buffer.shape[1] + 2, index.buffer.shape[2] + 64), 255, dtype=torch.uint8)
    wide[:, 1:-1, :-64] = index.buffer
    index.buffer = wide[:, 1:-1, :-64]
    index.query = torch.stack([index.query] * 2, -1)[..., 0]
    index.codebooks = torch.stack([index.codebooks] * 2, -1)[..., 0]
    assert_native_is_reference(index, 300)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_error_is_half_a_unit_for_each_subspace(bits):
    index = make_index(bits=bits)
    tables = pq_tables(index.query, index.codebooks, scale=index.scale)
    assert tables.entries.amax() == largest_entry(8, bits)
    keys = torch.stack([index.codebooks[:, m].gather(1, index.codes[..., m, None].long().expand(-1, -1, 4))
                        for m in range(8)], 2).flatten(2)  # fmt: skip
    exact = kernels.exact_scores(index.query, keys, 0, 300, scale=index.scale)
    estimate = kernels.pq_scores(*index.parts, 300, scale=index.scale, impl="reference")
    assert ((exact - estimate).abs() <= 8 * tables.step[..., None] / 2 + 1e-5).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(impl, value):
    index = make_index()
    index.query[1, 2, 3] = value
    with pytest.raises(ValueError, match="not finite"):
        kernels.pq_scores(*index.parts, 300, scale=1.0, impl=impl)


def test_errors_name_the_value_and_the_range():
    index = make_index()
    with pytest.raises(ValueError, match="n=9999, expected 0 to the capacity 384"):
        kernels.pq_scores(*index.parts, 9999, scale=1.0)
    with pytest.raises(ValueError, match="does not fit codebooks"):
        kernels.pq_scores(index.query[..., 1:], index.codebooks, index.buffer, 1, scale=1.0)
    with pytest.raises(ValueError, match="15 centroids"):
        kernels.pq_scores(index.query, index.codebooks[:, :, 1:], index.buffer, 1, scale=1.0)
    with pytest.raises(ValueError, match="impl='fast'"):
        kernels.pq_scores(*index.parts, 1, scale=1.0, impl="fast")
