"""WindowKV: whole windows by the attention of a prompt's end, one set for a group of layers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.attention import Logits
from keyhole.core.errors import SpecError
from keyhole.core.model_info import ModelInfo
from keyhole.methods import METHODS, Recipe
from keyhole.retention import GroupPyramid, group_pyramid
from tests import oracles
from tests import oracles_eviction_windowkv as formulae
from tests.evictions import Evicting
from tests.layers import check_dense


def spec_of(**options):
    given = {
        "prompt": "pieces",
        "layers": "uniform",
        "budget": 20,
        "sinks": 2,
        "window": 5,
        "omega": 4,
        "p": 4,
    }
    return f"windowkv({', '.join(f'{name}={value}' for name, value in (given | options).items())})"


def check(layer, **options):
    """What each row keeps is what the formulae say of it alone."""
    query, keys = layer.query, layer.keys
    for row, start in enumerate(layer.starts):
        weights = formulae.attention(
            oracles.array(query[row, :, start:]),
            oracles.array(keys[row, :, start:]),
            scale=layer.logits.scale,
        )
        wanted = formulae.kept(weights, keys.shape[1], **options)
        assert [[p + start for p in head] for head in wanted] == layer.kept()[row]


@settings(max_examples=25)
@given(
    st.sampled_from([9, 21, 30, 47, 63]),
    st.sampled_from([1, 3, 4, 8, 50]),
    st.integers(1, 9),
    st.integers(1, 40),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 9),
)
def test_what_is_kept_is_what_the_formulae_keep(tokens, omega, p, budget, groups, per_head, padding):
    """Windows of any length, the last shorter; whole prompts, prompts of which all fits, padded ones."""
    options = {"sinks": 2, "omega": omega, "p": p, "per_head": per_head}
    spec = spec_of(window=5, budget=budget, **options)
    layer = Evicting(spec, batch=2, groups=groups, padding=[0, padding], seed=tokens)
    layer.append(tokens + 9)
    layer.attend(tokens + 9)
    check(layer, alpha=5, budget=max(budget, 7), **options)


def test_all_of_a_window_is_its_mean_and_one_is_its_greatest():
    weights = torch.rand(13).tolist()
    assert formulae.window_worth(weights, 99) == pytest.approx(sum(weights) / 13)
    assert formulae.window_worth(weights, 1) == max(weights)
    for p, q in ((4, 99), (1, 1)):
        first, second = (Evicting(spec_of(p=each), seed=3) for each in (p, q))
        for layer in (first, second):
            layer.append(50)
            layer.attend(50)
        assert first.kept() == second.kept()


def test_a_prompt_that_fits_is_untouched():
    layer = Evicting(spec_of(budget=40))
    layer.append(40)
    check_dense(layer, layer.attend(40), 40)
    assert layer.kept() == [[list(range(40))] * 2]
    assert torch.equal(layer.cache.storage.keys(), layer.keys)


def test_no_budget_leaves_sinks_and_newest():
    layer = Evicting(spec_of(budget=1))
    layer.append(50)
    layer.attend(50)
    assert layer.kept() == [[[0, 1, 45, 46, 47, 48, 49]] * 2]


def test_budgets_are_those_of_the_released_code():
    shares = group_pyramid(32, 8)
    assert [share.of(2048, 8000) for share in shares[::8]] == [2926, 2341, 1756, 1170]
    for cap in (512, 1024, 2048):
        for gamma, layers in ((8, 32), (4, 32), (1, 32), (7, 28), (14, 28)):
            found = [share.of(cap, 1 << 20) for share in group_pyramid(layers, gamma)]
            assert found == formulae.budgets(cap, gamma, layers)


@given(st.integers(1, 70), st.integers(1, 40), st.integers(1, 5000), st.integers(1, 9000))
def test_any_layers_share_out_the_budget(layers, gamma, average, context):
    """The mean stays within a token for each group; lower layers keep no less; none more than there is."""
    average = min(average, context)
    shares = group_pyramid(layers, gamma)
    found = [share.of(average, context) for share in shares]
    assert len(found) == layers
    assert all(0 <= count <= context for count in found)
    assert found == sorted(found, reverse=True)
    groups = -(-layers // gamma)
    assert sum(found) / layers == pytest.approx(average, abs=groups + 1)
    if gamma >= 14 or groups == 1 or average == context:
        assert set(found) == {average}


def test_one_layer_alone_and_none():
    assert group_pyramid(0, 8) == []
    assert group_pyramid(1, 8) == [GroupPyramid(0, 1, 8, 0.0)]
    assert group_pyramid(1, 8)[0].of(100, 1000) == 100


class Model:
    """Layers of one request, fed with tokens of their own but with the same numbers of them."""

    def __init__(self, spec, layers, *, seed=0, batch=1):
        self.layers, self.batch = Recipe.parse(spec).layers(layers), batch
        self.random = torch.Generator().manual_seed(seed)
        self.fed = [[] for _ in self.layers]

    def feed(self, tokens, mask=None):
        for index, layer in enumerate(self.layers):
            keys, values, query = (
                torch.randn(self.batch, heads, tokens, 16, generator=self.random) for heads in (2, 2, 4)
            )
            self.fed[index].append((keys, values, query))
            layer.append(keys, values)
            layer.attend(3 * query, Logits(0.25), mask=mask)

    def positions(self):
        return [layer.kept.positions.tolist() for layer in self.layers]


@pytest.mark.parametrize("prompt", ["pieces", "whole"])
@pytest.mark.parametrize("every", [0, 1, 3])
def test_followers_keep_what_their_leader_keeps(prompt, every):
    """Leaders are layers 0, 3 and 6, and unlike each other."""
    model = Model(spec_of(group=3, prompt=prompt, every=every, layers="pyramid"), 8)
    for tokens in (40, 23, 1, 1, 1, 1, 1, 30, 1, 1):
        model.feed(tokens)
        found = model.positions()
        for leader in (0, 3, 6):
            assert all(each == found[leader] for each in found[leader : leader + 3])
    assert found[0] != found[3] != found[6]


def test_followers_hold_no_queries():
    model = Model(spec_of(group=2), 2)
    model.feed(50)
    leader, follower = (layer.retention.scorer for layer in model.layers)
    assert leader.nbytes > 0 == follower.nbytes


def test_groups_of_one_share_nothing():
    model = Model(spec_of(group=1), 3)
    model.feed(50)
    for layer, fed in zip(model.layers, model.fed, strict=True):
        alone = Recipe.parse(spec_of()).layers(1)[0]
        keys, values, query = fed[0]
        alone.append(keys, values)
        alone.attend(3 * query, Logits(0.25))
        assert torch.equal(alone.kept.positions, layer.kept.positions)
    assert len({str(each) for each in model.positions()}) == 3


def test_a_group_that_keeps_everything_and_then_does_not():
    """What was chosen for one prompt is nothing to the next one: the released code left its list stale."""
    model = Model(spec_of(group=3, budget=30), 3)
    model.feed(25)
    assert model.positions() == [[[list(range(25))] * 2]] * 3
    model.feed(25)
    first = model.positions()
    assert first[0] == first[1] == first[2]
    assert len(first[0][0][0]) == 30
    for layer in model.layers:
        layer.crop(0)
    model.feed(50)
    again = model.positions()
    assert again[0] == again[1] == again[2] != first[0]


def test_nothing_is_left_but_sinks_and_newest_for_all_of_a_group():
    model = Model(spec_of(group=3, budget=1), 3)
    model.feed(50)
    assert model.positions() == [[[[0, 1, 45, 46, 47, 48, 49]] * 2]] * 3


def test_requests_do_not_meddle():
    """Two at a time, layer by layer in turns, keep what each keeps alone."""
    alone = [Model(spec_of(group=2, budget=budget), 4, seed=seed) for seed, budget in ((1, 20), (2, 33))]
    for model in alone:
        model.feed(60)
    first, second = (Recipe.parse(spec_of(group=2, budget=budget)).layers(4) for budget in (20, 33))
    for index in range(4):
        for layers, model in ((first, alone[0]), (second, alone[1])):
            keys, values, query = model.fed[index][0]
            layers[index].append(keys, values)
            layers[index].attend(3 * query, Logits(0.25))
    for layers, model in ((first, alone[0]), (second, alone[1])):
        assert [layer.kept.positions.tolist() for layer in layers] == model.positions()


def test_a_follower_alone_is_refused():
    model = Model(spec_of(group=2), 2)
    keys = torch.randn(1, 2, 50, 16)
    follower = model.layers[1]
    follower.append(keys, keys)
    with pytest.raises(ValueError, match="without its leader"):
        follower.attend(torch.randn(1, 4, 50, 16), Logits(0.25))


def test_a_follower_with_other_heads_is_refused():
    leader, follower = Recipe.parse(spec_of(group=2)).layers(2)
    for layer, heads in ((leader, 2), (follower, 4)):
        keys = torch.randn(1, heads, 50, 16)
        layer.append(keys, keys)
        if layer is leader:
            layer.attend(torch.randn(1, 4, 50, 16), Logits(0.25))
    with pytest.raises(ValueError, match="4 KV heads"):
        follower.attend(torch.randn(1, 4, 50, 16), Logits(0.25))


def test_keys_are_kept_once_for_a_group_of_query_heads():
    """The released code keeps them for each query head."""
    layer = Evicting(spec_of(), kv_heads=2, groups=4)
    layer.append(50)
    layer.attend(50)
    assert layer.cache.storage.keys().shape == (1, 2, 20, 16)
    repeated = Evicting(spec_of(), kv_heads=8, groups=1)
    keys, values = (each.repeat_interleave(4, 1) for each in (layer.keys, layer.values))
    repeated.cache.append(keys, values)
    repeated.cache.attend(layer.query, layer.logits)
    assert repeated.cache.kept.positions[0, ::4].tolist() == layer.cache.kept.positions[0].tolist()


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ("", (16, 8, 8)),
        ("task=aggregation", (32, 16, 8)),
        ("preset=code", (32, 8, 4)),
        ("preset=code, task=aggregation", (16, 8, 8)),
        ("omega=32", (16, 32, 32)),
        ("omega=32, task=aggregation", (32, 32, 16)),
        ("omega=32, p=5, window=9", (9, 32, 5)),
        ("omega=1, task=aggregation", (32, 1, 1)),
    ],
)
def test_presets_of_paper_and_code(options, sizes):
    retention = Recipe.parse(f"windowkv({options})").layers(1)[0].retention
    scorer = retention.scorer
    assert (scorer.window, scorer.size, scorer.best) == sizes
    assert retention.policy.window == sizes[0]


def test_auto_wants_a_text():
    method = METHODS["windowkv"](task="auto")
    with pytest.raises(SpecError, match="for_text"):
        Recipe.parse(method).layers(1)
    text = "Summarize the following report in three sentences.\n" + "word " * 500
    assert method.for_text(text).task == "aggregation"
    recipe = Recipe.parse("quest(budget=9) + windowkv(task=auto)")
    settled = recipe.for_text(text)
    assert str(settled) == "quest(budget=9) + windowkv(task=aggregation)"
    assert Recipe.parse("windowkv").for_text(text) == Recipe.parse("windowkv")
    # With all sizes given there is nothing to find out.
    Recipe.parse("windowkv(task=auto, window=4, omega=8, p=8)").layers(1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("task=qa", "localisation"),
        ("preset=demo", "paper, code"),
        ("group=-1", "at least 0"),
        ("omega=-1", "at least 0"),
        ("heads=adaptive", "per_head=true"),
        ("classifier='here'", "task=auto"),
        ("per_head=1", "true nor false"),
    ],
)
def test_options_out_of_range(options, said):
    with pytest.raises(SpecError, match=said):
        Recipe.parse(f"windowkv({options})")


@pytest.mark.parametrize(("layers", "group"), [(1, 1), (3, 1), (4, 1), (28, 7), (32, 8)])
def test_a_group_is_a_quarter_of_the_layers(layers, group):
    retentions = METHODS["windowkv"]().retention(ModelInfo.of(layers))
    leaders = [place for place, each in enumerate(retentions) if type(each).__name__ == "_Leader"]
    assert leaders == list(range(0, layers, group))
