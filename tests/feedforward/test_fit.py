import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keyhole.feedforward import GatedFit, InputFit, Rule, cut


def drawn(tokens, channels, seed=0):
    """Factors whose channels are of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    gate = torch.randn(tokens, channels, generator=generator)
    up = torch.randn(tokens, channels, generator=generator) * torch.logspace(-1, 1, channels)
    return gate, up, torch.rand(channels, generator=generator) + 0.5


def fitted(gate, up, norms, rule=None, parts=1):
    fit = GatedFit(rule or Rule(), norms)
    for add in (fit.add_means, fit.add):
        for some in zip(gate.chunk(parts), up.chunk(parts), strict=True):
            add(*some)
    return fit.fitted


def skipped(x, threshold):
    return float((cut(x, threshold) == 0).float().mean())


@pytest.mark.parametrize("first", ["gate", "up"])
@pytest.mark.parametrize("weighting", ["mean", "norm", "none"])
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9, 0.4567])
def test_realised_sparsity_on_the_calibration_data(first, weighting, sparsity):
    gate, up, norms = drawn(501, 96)
    found = fitted(gate, up, norms, Rule(first, weighting))
    assert abs(skipped(gate if first == "gate" else up, found.threshold(sparsity)) - sparsity) < 0.005


def test_thresholds_are_those_of_the_definition():
    gate, up, norms = drawn(40, 7)
    threshold = fitted(gate, up, norms).threshold(0.5)
    means = up.abs().mean(0)
    scores = (gate.abs() * means).flatten().sort().values
    assert torch.allclose(threshold, scores[len(scores) // 2 - 1] / means, rtol=0.01)


def test_channels_differ_in_sparsity():
    # The same quantile for each channel would be a weaker rule.
    gate, up, norms = drawn(500, 64)
    kept = cut(gate, fitted(gate, up, norms).threshold(0.5)) != 0
    share = kept.float().mean(0)
    assert share[-1] > 0.9
    assert share[0] < 0.1


def test_equal_means_give_one_threshold_as_cats_does():
    gate, up, norms = drawn(300, 32)
    up = up.sign() * 2
    threshold, single = (
        fitted(gate, up, norms, Rule(weighting=each)).threshold(0.5) for each in ("mean", "none")
    )
    assert torch.allclose(threshold, single.expand(32), rtol=0.01)


def test_equal_norms_change_nothing():
    gate, up, _ = drawn(300, 32)
    plain, weighted = (
        fitted(gate, up, torch.full((32,), 4.0), Rule(weighting=each)).threshold(0.5)
        for each in ("mean", "norm")
    )
    assert torch.equal(plain, weighted)


def test_rescaling_moves_the_mask_unless_norms_count():
    # up * s and down / s leave what the feed-forward computes as it is.
    gate, up, norms = drawn(300, 32)
    scale = 2.0 ** torch.randint(-3, 4, (32,), generator=torch.Generator().manual_seed(1))
    masks = {
        weighting: [
            cut(gate, fitted(gate, up * s, norms / s, Rule(weighting=weighting)).threshold(0.5)) != 0
            for s in (torch.ones(32), scale)
        ]
        for weighting in ("mean", "norm")
    }
    assert torch.equal(*masks["norm"])
    assert not torch.equal(*masks["mean"])


@given(st.integers(1, 9), st.integers(0, 5))
def test_portions_do_not_matter(parts, seed):
    gate, up, norms = drawn(18, 5, seed)
    whole, pieces = (fitted(gate, up, norms, parts=each) for each in (1, parts))
    assert torch.allclose(whole.weights, pieces.weights, rtol=1e-6)
    assert torch.allclose(whole.quantiles, pieces.quantiles, rtol=0.01)


def test_many_small_portions_do_not_drift_in_bfloat16():
    gate, up, norms = (each.bfloat16() for each in drawn(2000, 8))
    exact = up.double().abs().mean(0).float()
    assert torch.allclose(fitted(gate, up, norms, parts=500).weights, exact, rtol=1e-5)


def test_a_channel_without_weight_is_always_dropped():
    gate, up, norms = drawn(100, 8)
    up[:, 3] = 0
    threshold = fitted(gate, up, norms).threshold(0.5)
    assert threshold[3] == torch.inf
    assert threshold.isfinite().sum() == 7
    assert not cut(torch.full((1, 8), 1e30), threshold)[0, 3]


def test_more_sparsity_never_lowers_a_threshold():
    found = fitted(*drawn(50, 6))
    several = torch.stack([found.threshold(share / 64) for share in range(64)])
    assert (several.diff(dim=0) >= 0).all()
    assert not several[0].any()


def test_inputs_share_one_threshold():
    x = torch.randn(7, 5, 33, generator=torch.Generator().manual_seed(0))
    fit = InputFit()
    fit.add(x)
    threshold = fit.fitted.threshold(0.5)
    assert threshold.shape == (1,)
    assert abs(skipped(x, threshold) - 0.5) < 0.005


def test_what_is_equal_to_its_threshold_is_kept():
    x = torch.tensor([[0.5, -0.5, 0.25, -0.25, 0.0, torch.nan]])
    assert cut(x, torch.tensor([0.5]))[0, :5].tolist() == [0.5, -0.5, 0, 0, 0]
    assert cut(x, torch.tensor([0.5]))[0, 5].isnan()
    assert torch.equal(cut(x[:, :5], torch.zeros(1)), x[:, :5])
