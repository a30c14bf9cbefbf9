"""CHESS computes what the model computes: with hooks, adapters, parametrizations, functions of a user."""

import copy
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize, prune

import keyhole
from keyhole.engines.transformers.compat import CACHE
from keyhole.engines.transformers.sparse_ffn.activations import fit_activations
from keyhole.engines.transformers.sparse_ffn.sites import gated_sites, input_sites
from keyhole.engines.transformers.stand_in_activations import stand_in_activations
from keyhole.feedforward import Rule
from tests.tiny import fresh_model, prompt

BLOCKS = ("mlp", "self_attn.q_proj", "self_attn.o_proj")
INSIDE = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "mlp.act_fn")
STEPS = 5


def decode(model):
    """Logits of a prompt's last token and of `STEPS - 1` steps."""
    out = model.generate(
        prompt(20),
        attention_mask=torch.ones(1, 20, dtype=torch.long),
        max_new_tokens=STEPS,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return torch.stack(out.logits)


def part(model, name, layer=1):
    return model.model.layers[layer].get_submodule(name)


def counted(calls):
    return lambda *_: calls.append(1)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("name", BLOCKS + INSIDE)
@pytest.mark.parametrize(
    "register", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]
)
def test_hooks_are_called_in_every_step(name, register, late):
    model, calls = fresh_model("llama"), []

    def add():
        hook = counted(calls) if register != "register_full_backward_hook" else lambda *_: None
        return getattr(part(model, name), register)(hook)

    if not late:
        handle = add()
    with keyhole.attach(model, "chess(sparsity=0.3)") as attached:
        if late:
            handle = add()
        calls.clear()
        decode(model)
    assert attached.activated.share < 1
    if register != "register_full_backward_hook":
        assert len(calls) == STEPS
    handle.remove()


@pytest.mark.parametrize("name", BLOCKS + INSIDE)
def test_a_steering_vector_moves_steps_as_it_moves_the_models_own(name):
    """At the last layer, where what follows is computed densely, and no sparsity to speak of."""
    model = fresh_model("llama")
    with keyhole.attach(model, "chess(sparsity=0.001)"):
        before = decode(model)
        handle = part(model, name).register_forward_hook(lambda _m, _a, out: out + 0.5 * out.roll(1, -1))
        steered = decode(model)
    own = decode(model)
    assert (own - before).abs().max() > 0.1
    torch.testing.assert_close(steered, own, rtol=0.05, atol=0.05)
    handle.remove()


def test_hooks_of_all_modules_see_the_inner_ones():
    model, seen = fresh_model("llama"), []
    wanted = decode(model)
    with keyhole.attach(model, "chess(attention=false)"):
        handle = register_module_forward_hook(lambda module, *_: seen.append(module))
        try:
            found = decode(model)
        finally:
            handle.remove()
    assert seen.count(part(model, "mlp.up_proj")) == STEPS
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


class _Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


class _Adapted(nn.Module):
    """As adapters are: a module with the old one inside."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        self.extra = nn.Linear(base_layer.in_features, base_layer.out_features, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.extra(x)


def parametrized(model, name, layer=1):
    parametrize.register_parametrization(part(model, name, layer), "weight", _Doubled())


def pruned(model, name, layer=1):
    linear = part(model, name, layer)
    prune.custom_from_mask(linear, "weight", torch.arange(linear.weight.numel()).view_as(linear.weight) % 2)


def adapted(model, name, layer=1):
    parent, _, child = name.rpartition(".")
    torch.manual_seed(1)
    setattr(part(model, parent, layer), child, _Adapted(part(model, name, layer)))


def replaced(model, name, layer=1):
    module = part(model, name, layer)
    own = module.forward
    module.forward = lambda x: own(x) + 1


CHANGES = (parametrized, pruned, adapted, replaced)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("name", ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "self_attn.q_proj"])
def test_what_changes_a_projection_is_part_of_the_step(change, late, name):
    model = fresh_model("llama")
    if not late:
        change(model, name)
    with keyhole.attach(model, "chess(sparsity=0.001)"):
        if late:
            change(model, name)
        found = decode(model)
    torch.testing.assert_close(found, decode(model), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("change", CHANGES)
def test_where_nothing_is_left_to_skip_what_is_in_the_way_is_named(change):
    model = fresh_model("llama")
    for layer in (0, 1):
        change(model, "mlp.up_proj", layer)
    with (
        pytest.raises(keyhole.UnsupportedModelError, match=r"layers\.0\.mlp\.up_proj.*leave `chess` out"),
        keyhole.attach(model, "chess"),
    ):
        pass


def test_adapters_on_queries_alone_are_refused_with_the_way_out():
    model = fresh_model("llama")
    for layer in (0, 1):
        adapted(model, "self_attn.q_proj", layer)
    with (
        pytest.raises(
            keyhole.UnsupportedModelError, match=r"q_proj is a .*_Adapted.*chess\(attention=false\)"
        ),
        keyhole.attach(model, "chess"),
    ):
        pass
    with keyhole.attach(model, "chess(attention=false)") as attached:
        decode(model)
    assert attached.activated.share < 1


def test_a_function_put_in_place_inside_a_block_stays():
    model = fresh_model("llama")
    mlp = part(model, "mlp")
    with keyhole.attach(model, "chess"):
        replaced(model, "mlp")
        mine = mlp.forward
    assert mlp.forward is mine
    assert torch.equal(mlp(torch.ones(1, 1, 48)), type(mlp).forward(mlp, torch.ones(1, 1, 48)) + 1)


def test_a_copy_made_inside_a_block_is_dense_and_of_its_own_weights():
    model = fresh_model("llama")
    with keyhole.attach(model, "chess(sparsity=0.9)"):
        inner = copy.deepcopy(part(model, "mlp"))
    x = torch.randn(1, 1, 48)
    torch.testing.assert_close(inner(x), part(model, "mlp")(x))
    nn.init.zeros_(inner.down_proj.weight)
    assert not inner(x).any()
    assert part(model, "mlp")(x).any()


def test_a_model_that_is_called_within_a_step_leaves_the_rest_of_it_sparse():
    model, other = fresh_model("llama"), fresh_model("qwen2")
    with keyhole.attach(model, "chess(sparsity=0.5)") as attached:
        decode(model)
        alone = attached.activated.share

        def call_other(*_):
            if not getattr(other, "busy", False):
                other.busy = True
                other(prompt(3))
                other.busy = False

        handle = model.model.layers[0].input_layernorm.register_forward_hook(call_other)
        with keyhole.attach(other, "chess"):
            decode(model)
        assert attached.activated.share == pytest.approx(alone)
    handle.remove()


def thresholds(fitted):
    return {name: each.threshold(0.5) for name, each in fitted.items()}


def assert_equal_thresholds(found, wanted):
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_fitting_sees_no_calls_of_other_threads(family):
    model = fresh_model(family)
    wanted = thresholds(fit_activations(model, [prompt(64)], rule=Rule()))
    done = threading.Event()

    def disturb():
        while not done.is_set():
            with torch.no_grad():
                model(prompt(200, seed=3) % 7)

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(disturb)
        try:
            found = [thresholds(fit_activations(model, [prompt(64)], rule=Rule())) for _ in range(3)]
        finally:
            done.set()
        other.result()
    for each in found:
        assert_equal_thresholds(each, wanted)


def test_two_threads_that_fit_at_once_find_what_one_finds_alone():
    wanted = thresholds(stand_in_activations(fresh_model("llama"), Rule(), True))
    model = fresh_model("llama")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: thresholds(stand_in_activations(model, Rule(), True)), range(4)))
        other = list(
            pool.map(lambda _: thresholds(fit_activations(model, [prompt(40)], rule=Rule())), range(4))
        )
    for each in found:
        assert_equal_thresholds(each, wanted)
    for each in other:
        assert_equal_thresholds(each, other[0])


def test_an_offloaded_weight_is_named():
    model = fresh_model("llama")
    up = part(model, "mlp.up_proj")
    up.weight = nn.Parameter(torch.empty_like(up.weight, device="meta"))
    with pytest.raises(keyhole.UnsupportedModelError, match=r"layers\.1\.mlp\.up_proj\.weight .* meta"):
        fit_activations(model, [prompt(9)], rule=Rule())


def test_sites_are_the_models_own_modules():
    model = fresh_model("llama")
    before = {name: id(module) for name, module in model.named_modules()}
    with keyhole.attach(model, "chess"):
        assert {name: id(module) for name, module in model.named_modules()} == before
        assert set(gated_sites(model)) == {"layers.0.mlp", "layers.1.mlp"}
        assert len(input_sites(model)) == 4
    assert not any("forward" in vars(module) for module in model.modules())


METHODS = (
    "dense",
    "pqcache(dense_below=0)",
    "a2ats(dense_below=0)",
    "shadowkv(dense_below=0)",
    "tokenselect(renumber=true, dense_below=0)",
    "snapkv",
    "sale",
    "chess(sparsity=0.3)",
)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_a_model_is_freed_with_its_caches(method, kept):
    model = fresh_model("llama")
    references = [
        weakref.ref(model),
        weakref.ref(part(model, "mlp")),
        weakref.ref(part(model, "mlp.up_proj")),
    ]
    if kept:
        cache = keyhole.make_cache(model, method)
        model.generate(prompt(50), max_new_tokens=2, do_sample=False, **{CACHE: cache})
        del cache
    else:
        with keyhole.attach(model, method):
            decode(model)
    del model
    gc.collect()
    assert [reference() for reference in references] == [None] * 3
