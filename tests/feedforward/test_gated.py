import pytest
import torch
import torch.nn.functional as F

from keyhole import kernels
from keyhole.feedforward import Gated, Projection, gated, project, project_sparse, sparse_gated


def drawn(n=48, f=67, m=33, dtype=torch.float32, bias=True):
    generator = torch.Generator().manual_seed(0)

    def projection(rows, columns, transposed=False):
        weight = torch.randn(rows, columns, generator=generator).to(dtype)
        weight = weight.t().contiguous().t() if transposed else weight
        return Projection(weight, torch.randn(rows, generator=generator).to(dtype) if bias else None)

    return Gated(projection(f, n), projection(f, n), projection(m, f, transposed=True), F.silu)


def masked(each, x, threshold, first):
    """The definition, in float64."""
    gate, up = (
        x.double() @ p.weight.double().T + (0 if p.bias is None else p.bias.double()) for p in each[:2]
    )
    gate = F.silu(gate)
    lead = gate if first == "gate" else up
    kept = lead.abs() >= threshold
    down = each.down.weight.double().T
    return gate * up * kept @ down + (0 if each.down.bias is None else each.down.bias.double()), kept


def close(found, expected, dtype):
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    return float((found - expected).abs().max()) <= tolerance * float(expected.abs().max().clamp(min=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("first", ["gate", "up"])
@pytest.mark.parametrize("threshold", [0.0, 0.7, 2.0, float("inf")])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_kept_channels_give_the_output(dtype, first, threshold, rows, bias):
    each = drawn(dtype=dtype, bias=bias)
    x = torch.randn(rows, 48, generator=torch.Generator().manual_seed(1)).to(dtype)
    out, kept = sparse_gated(each, x, torch.tensor([threshold]), first)
    expected, right = masked(each, x, threshold, first)
    assert out.dtype == dtype
    assert out.shape == (rows, 33)
    assert (kept != right).float().mean() < (0.001 if dtype == torch.float32 else 0.05)
    if dtype == torch.float32 or threshold in (0.0, float("inf")):
        assert close(out, expected, dtype)


@pytest.mark.parametrize("first", ["gate", "up"])
def test_a_single_row_is_computed_as_one_of_several(first):
    each, threshold = drawn(), torch.rand(67) * 2
    x = torch.randn(5, 48)
    together, _ = sparse_gated(each, x, threshold, first)
    for row in range(5):
        alone, _ = sparse_gated(each, x[row : row + 1], threshold, first)
        assert close(alone[0], together[row], torch.float32)


def test_a_gradient_passes_where_one_is_asked_for():
    x = torch.randn(1, 48, requires_grad=True)
    out, _ = sparse_gated(drawn(), x, torch.tensor([0.5]), "gate")
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 2, 30])
@pytest.mark.parametrize("slow", [True, False])
def test_products_with_a_transposed_weight(dtype, rows, slow, monkeypatch):
    # Without instructions for bfloat16 these go another way.
    monkeypatch.setattr(gated, "_has_bfloat16", lambda: not slow)
    monkeypatch.setattr(gated, "_ROWS", 10)
    down = drawn(dtype=dtype).down
    x = torch.randn(rows, 67).to(dtype)
    expected = x.double() @ down.weight.double().T + down.bias.double()
    assert close(project(down, x), expected, dtype)
    assert close(project_sparse(down, x), expected, dtype)
    assert gated.is_slow(down.weight) == (slow and dtype == torch.bfloat16)
    assert not gated.is_slow(down.weight.contiguous())


def test_inputs_that_are_0_are_never_read():
    down = drawn(bias=False).down
    if not kernels.native_available():
        pytest.skip("without native code all is read")
    x = torch.randn(1, 67)
    x[:, ::2] = 0
    expected = project_sparse(down, x)
    down.weight[:, ::2] = torch.nan
    assert torch.equal(project_sparse(down, x), expected)
