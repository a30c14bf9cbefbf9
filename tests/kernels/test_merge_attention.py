"""Two parts of attention, put together."""

import math

import pytest
import torch

from keyhole import kernels
from tests.waiting import without_waiting

IMPLS = pytest.mark.parametrize("impl", ["reference", "triton"])


@IMPLS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1, 16, 33])
def test_of_attention_in_float64(impl, dtype, size):
    values, logits = torch.randn(3, 2, 40, size).double(), torch.randn(3, 2, 40).double() * 20
    parts = []
    for slots in (slice(0, 11), slice(11, 40)):
        lse = logits[..., slots].logsumexp(-1)
        weights = (logits[..., slots] - lse[..., None]).exp()
        parts += [(weights[..., None, :] @ values[..., slots, :]).squeeze(-2).to(dtype), lse.float()]
    out, lse = kernels.merge_attention(*parts, impl=impl)
    whole = (logits.softmax(-1)[..., None, :] @ values).squeeze(-2)
    assert out.dtype == dtype
    rounding = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    assert (out.double() - whole).abs().max() <= rounding * values.abs().max()
    torch.testing.assert_close(lse.double(), logits.logsumexp(-1), rtol=1e-6, atol=1e-5)


@IMPLS
def test_parts_without_tokens_and_logits_of_any_size(impl):
    ones = torch.tensor([1.0, 0, 1, 1])[:, None].expand(-1, 5), torch.tensor([3, -math.inf, 1e30, 5e4])
    twos = (
        torch.tensor([0.0, 0, 2, 2])[:, None].expand(-1, 5),
        torch.tensor([-math.inf, -math.inf, -1e30, 5e4]),
    )
    out, lse = kernels.merge_attention(*ones, *twos, impl=impl)
    assert out[:, 0].tolist() == [1, 0, 1, 1.5]
    assert lse.tolist() == pytest.approx([3, -math.inf, 1e30, 5e4 + math.log(2)])


@IMPLS
@pytest.mark.parametrize("other", [0.0, -math.inf])
def test_nan_is_not_hidden(impl, other):
    bad, good = torch.full((1, 3), math.nan), torch.zeros(1, 3)
    parts = [bad, bad[:, 0], good, torch.tensor([other])]
    for operands in (parts, parts[2:] + parts[:2]):
        out, lse = kernels.merge_attention(*operands, impl=impl)
        assert out.isnan().all()
        assert lse.isnan().all()


@IMPLS
def test_of_nothing(impl):
    out, lse = kernels.merge_attention(*[torch.zeros(0, 4), torch.zeros(0)] * 2, impl=impl)
    assert (out.shape, lse.shape) == ((0, 4), (0,))


def test_nothing_waits(monkeypatch):
    part = torch.randn(2, 3, 8), torch.randn(2, 3)
    with without_waiting(monkeypatch):
        kernels.merge_attention(*part, *part, impl="triton")


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="do not fit"):
        kernels.merge_attention(torch.zeros(2, 3), torch.zeros(2), torch.zeros(2, 4), torch.zeros(2))
    with pytest.raises(ValueError, match="do not fit"):
        kernels.merge_attention(torch.zeros(2, 3), torch.zeros(3), torch.zeros(2, 3), torch.zeros(2))
