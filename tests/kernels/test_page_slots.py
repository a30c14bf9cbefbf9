"""Pages to slots: Triton kernels agree with the reference, which tests/selection/test_pages.py tests."""

import pytest
import torch

from keyhole import kernels


def problem(lists, page, *, tokens=457, most=90, mass=None, floor=0, ties=False):
    make = torch.Generator().manual_seed(page)
    pages = -(-tokens // page)
    scores = torch.randn(2, lists, pages, generator=make)
    scores = scores.round() if ties else scores
    shares = torch.rand(2, 3, pages, generator=make) / pages
    places = kernels.top_slots(scores, min(pages, most // page + 3), impl="reference")
    first, stop = torch.tensor([[5, 0], [tokens, tokens - 21]], dtype=torch.int32)
    paged = kernels.Paged(first, stop, tokens, page)
    allowed = kernels.Allowed(torch.tensor([most, most - 7]), most, mass, floor)
    return places, scores, shares, torch.full((2, 3), 0.1), paged, allowed


def check(*operands):
    found, expected = (kernels.page_slots(*operands, impl=impl) for impl in ("triton", "reference"))
    assert torch.equal(found.counts, expected.counts)
    torch.testing.assert_close(found.mass, expected.mass)
    width = expected.slots.shape[-1]
    assert torch.equal(found.slots[..., :width], expected.slots)
    assert not found.slots[..., width:].any()


@pytest.mark.parametrize("lists", [1, 3])
@pytest.mark.parametrize("page", [1, 16, 50])
@pytest.mark.parametrize("ties", [False, True])
def test_kernels_agree(lists, page, ties):
    pytest.importorskip("triton")
    check(*problem(lists, page, ties=ties))


@pytest.mark.parametrize("lists", [1, 3])
@pytest.mark.parametrize(("mass", "floor"), [(0.13, 0), (0.2, 0), (0.05, 40), (0.99, 0)])
def test_masses(lists, mass, floor):
    pytest.importorskip("triton")
    check(*problem(lists, 4, mass=mass, floor=floor))


def test_nothing_competes():
    pytest.importorskip("triton")
    *operands, paged, allowed = problem(3, 16)
    check(*operands, paged._replace(first=torch.tensor([457, 500])), allowed)


def test_shapes_are_checked():
    places, scores, *rest = problem(3, 16)
    with pytest.raises(ValueError, match="one list of pages, or one for each KV head"):
        kernels.page_slots(places[:, :2], scores[:, :2], *rest)
