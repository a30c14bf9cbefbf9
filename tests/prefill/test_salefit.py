"""Thresholds by the error they make: found, written, and read for the model they were found for."""

import json
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keyhole.attention import Logits, dense_attention
from keyhole.core.model_info import ModelInfo
from keyhole.kernels import Reach, sale_attention
from keyhole.methods import Recipe
from keyhole.prefill.salefile import read_thresholds, write_thresholds
from keyhole.prefill.salefit import ThresholdFit, grid, threshold_fit
from keyhole.prefill.salelayer import LayerFit, cheapest

REACH, SCALE = Reach(window=32, width=1), 16**-0.5


def drawn(seed, tokens=400):
    make = torch.Generator().manual_seed(seed)
    query = torch.randn(1, 4, tokens, 16, generator=make) * torch.tensor([1.0, 4.0, 8.0, 2.0]).view(
        1, 4, 1, 1
    )
    keys, values = (torch.randn(1, 2, tokens, 16, generator=make) for _ in range(2))
    return query, keys, values


def fitted(seeds, error, **options):
    fit = ThresholdFit(REACH, error, **options)
    for seed in seeds:
        operands = drawn(seed)
        fit.see(*operands, Logits(SCALE), dense_attention(*operands, scale=SCALE))
    return fit


def errors(tau, seed):
    """Relative, and absolute a token, for each head."""
    operands = drawn(seed)
    out = dense_attention(*operands, scale=SCALE).double()
    difference = sale_attention(*operands, tau, scale=SCALE, reach=REACH).out.double() - out
    relative = [float(difference[0, h].norm() / out[0, h].norm()) for h in range(4)]
    absolute = [float(difference[0, h].abs().sum() / out.shape[2]) for h in range(4)]
    return relative, absolute


def test_the_grid_of_the_paper_is_a_part_of_it():
    taus = grid()
    assert taus[-1] == 0
    assert all(a == 2 * b for a, b in pairwise(taus[:-1]))
    for published in (0.008, 0.004, 0.002, 0.001, 0.0005, 0.00025, 0.000125):
        assert min(abs(tau - published) for tau in taus) < 1e-12


@pytest.mark.parametrize("error", [0.01, 0.1])
def test_a_relative_error_holds_for_every_head(error):
    tau = fitted([0], error).tau
    taus = torch.tensor(grid())
    assert torch.isin(tau, taus).all()
    assert max(errors(tau, 0)[0]) <= error * 1.001
    assert tau.unique().numel() > 1
    for head in range(4):
        if tau[head] < taus[0]:
            tau[head] = taus[taus > tau[head]].min()
            assert errors(tau, 0)[0][head] > error


def test_an_absolute_error_holds_too_and_depends_on_the_size_of_values():
    tau = fitted([0], 0.05, kind="absolute").tau
    assert max(errors(tau, 0)[1]) <= 0.05 * 1.001
    assert not torch.equal(tau, fitted([0], 0.5, kind="absolute").tau)


def test_the_least_of_all_prompts_in_any_order():
    both = fitted([0, 1], 0.05).tau
    assert torch.equal(both, fitted([1, 0], 0.05).tau)
    assert torch.equal(both, torch.minimum(fitted([0], 0.05).tau, fitted([1], 0.05).tau))


def test_no_error_allows_no_threshold():
    assert fitted([0], 0.0).tau.tolist() == [0.0] * 4


def shared(seeds, error):
    fit = threshold_fit(REACH, error, "layer")
    assert isinstance(fit, LayerFit)
    for seed in seeds:
        operands = drawn(seed)
        fit.see(*operands, Logits(SCALE), dense_attention(*operands, scale=SCALE))
    return fit.tau


def measured(tau, seed):
    """A layer's error and how many keys are read."""
    operands = drawn(seed)
    out = dense_attention(*operands, scale=SCALE)
    found = sale_attention(*operands, tau, scale=SCALE, reach=REACH)
    return float((found.out - out).norm() / out.norm()), int(found.kept.sum())


@pytest.mark.parametrize("error", [0.02, 0.1])
def test_heads_share_the_error_of_a_layer_and_read_less(error):
    tau = shared([0], error)
    found, reads = measured(tau, 0)
    assert 0 < found <= error * 1.001
    assert reads <= measured(fitted([0], error).tau, 0)[1]


def test_a_layer_is_within_its_error_on_all_prompts_in_any_order():
    tau = shared([0, 1], 0.05)
    assert torch.equal(tau, shared([1, 0], 0.05))
    assert max(measured(tau, seed)[0] for seed in (0, 1)) <= 0.05 * 1.001


def test_no_error_of_a_layer_allows_no_threshold():
    assert shared([0], 0.0).tolist() == [0.0] * 4


@given(st.integers(1, 4), st.integers(1, 6), st.floats(0, 1), st.integers(0, 1000))
def test_steps_are_within_the_error_and_cheaper_ones_are_not(heads, steps, allowed, seed):
    make = torch.Generator().manual_seed(seed)
    errors = torch.rand(steps + 1, heads, generator=make).sort(0, descending=True).values.double()
    reads = torch.rand(steps + 1, heads, generator=make).sort(0).values.double()
    errors[-1] = 0
    found = cheapest(errors, reads, allowed).unsqueeze(0)
    assert float(errors.gather(0, found).sum()) <= allowed
    # Nothing that reads less has a smaller error.
    price_of = reads.gather(0, found)
    assert not ((reads < price_of) & (errors < errors.gather(0, found))).any()


def test_refuses_an_unknown_kind_and_a_negative_error():
    with pytest.raises(ValueError, match="kind='squared' is not one of layer, relative, absolute"):
        threshold_fit(REACH, 0.1, "squared")
    for error in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="error="):
            threshold_fit(REACH, error, "layer")


def written(folder, model="one"):
    taus = {1: torch.tensor([0.5, 0.25]), 3: torch.tensor([0.0, 1e-3])}
    write_thresholds(folder, taus, model=model, reach=Reach(), error=0.01)
    return taus


def test_thresholds_are_read_for_the_layers_of_the_model(tmp_path):
    taus = written(tmp_path)
    read = read_thresholds(tmp_path, ModelInfo((3,), fingerprint=lambda: "one"), Reach())
    assert [tau.tolist() for tau in read] == [taus[3].tolist()]
    read = read_thresholds(tmp_path, ModelInfo.of(2), Reach())
    assert [tau.tolist() for tau in read] == [taus[1].tolist(), taus[3].tolist()]
    spec = f"sale(thresholds={str(tmp_path)!r}, tile=32, rows=64, means=false)"
    layers = Recipe.parse(spec).layers(2)
    assert [layer.prefill.tau.tolist() for layer in layers] == [taus[1].tolist(), taus[3].tolist()]
    assert json.loads((tmp_path / "thresholds.json").read_text())["error"] == 0.01


def test_refuses_thresholds_that_do_not_fit(tmp_path):
    written(tmp_path)
    with pytest.raises(ValueError, match=r"made for another model.*keyhole calibrate sale"):
        read_thresholds(tmp_path, ModelInfo((1,), fingerprint=lambda: "two"), Reach())
    with pytest.raises(ValueError, match=r"made for Reach.*width=32.*not Reach.*width=8"):
        read_thresholds(tmp_path, ModelInfo.of(1), Reach(width=8))
    with pytest.raises(ValueError, match=r"layers \[1, 3\], not for"):
        read_thresholds(tmp_path, ModelInfo((2,), fingerprint=lambda: "one"), Reach())
    with pytest.raises(ValueError, match="there are no thresholds in"):
        read_thresholds(tmp_path / "nowhere", ModelInfo.of(1), Reach())
    tensors = next(tmp_path.glob("thresholds-*.safetensors"))
    tensors.write_bytes(tensors.read_bytes()[:-3])
    with pytest.raises(ValueError, match="damaged"):
        read_thresholds(tmp_path, ModelInfo.of(1), Reach())
    tensors.unlink()
    with pytest.raises(ValueError, match="is gone; calibrate again"):
        read_thresholds(tmp_path, ModelInfo.of(1), Reach())
