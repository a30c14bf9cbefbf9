"""Steps that are asked for in another way, or of a model that was changed, are the model's own."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import keyhole
from keyhole.engines.transformers.packed import pack_model
from keyhole.engines.transformers.steps.fused import FusedSteps
from keyhole.kernels import native_available
from tests.engines.transformers.running import answer, assert_same
from tests.tiny import fresh_model, prompt

pytestmark = pytest.mark.skipif(not native_available(), reason="no native library is built")
IDS = prompt(20, rows=2)


def own_and_ours(model, change, given, grad=False):
    """Logits of a step after a change, or the error, without Keyhole and with it."""
    found = []
    for each, attached in ((copy.deepcopy(model), False), (model, True)):
        with keyhole.attach(each, "dense") if attached else nullcontext():
            with torch.no_grad():
                cache = each(IDS, use_cache=True).past_key_values
                each(IDS[:, :1], past_key_values=cache)  # by native code where that is attached
            change(each)
            with torch.set_grad_enabled(grad):
                try:
                    found.append(each(**given(each), past_key_values=cache).logits)
                except (RuntimeError, ValueError, IndexError) as error:
                    found.append(error)
    return found


def next_ids(_model):
    return {"input_ids": IDS[:, 1:2]}


def unchanged(_model):
    pass


def embedded(model):
    return model.model.embed_tokens(IDS[:, 1:2])


def widened(model):
    mlp = model.model.layers[1].mlp
    mlp.gate_proj, mlp.up_proj = (nn.Linear(48, 128, bias=False) for _ in range(2))
    mlp.down_proj = nn.Linear(128, 48, bias=False)


def scaled(model):
    for layer in model.model.layers:
        layer.self_attn.scaling = 0.9


def with_other_eps(model):
    model.model.layers[0].input_layernorm.variance_epsilon = 10.0


def fewer(model):
    model.config.num_hidden_layers = 1


def swapped(model):
    model.model.layers = nn.ModuleList([model.model.layers[0], copy.deepcopy(model.model.layers[0])])
    model.model.layers[1].self_attn.layer_idx = 1


CHANGES = {
    "another last norm": lambda model: setattr(model.model, "norm", nn.Identity()),
    "other layers": swapped,
    "fewer layers": fewer,
    "another scale of attention": scaled,
    "another epsilon": with_other_eps,
    "a wider layer": widened,
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_after_the_first_step_count(name):
    torch.manual_seed(0)
    model = fresh_model("llama")
    state = torch.get_rng_state()

    def change(each):
        torch.set_rng_state(state)
        CHANGES[name](each)

    own, ours = own_and_ours(model, change, next_ids)
    torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-4)


OTHER_CALLS = {
    "float16 embeddings": lambda model: {"inputs_embeds": embedded(model).half()},
    "float64 embeddings": lambda model: {"inputs_embeds": embedded(model).double()},
    "wide embeddings": lambda _: {"inputs_embeds": torch.randn(2, 1, 50)},
    "narrow embeddings": lambda _: {"inputs_embeds": torch.randn(2, 1, 20)},
    "both": lambda model: {"inputs_embeds": embedded(model), "input_ids": IDS[:, 1:2]},
    "neither": lambda _: {},
    "ids of one dimension": lambda _: {"input_ids": torch.tensor([1, 2])},
    "positions of other rows": lambda model: next_ids(model) | {"position_ids": torch.ones(3, 1).long()},
    "more positions": lambda model: next_ids(model) | {"position_ids": torch.tensor([[21, 22]] * 2)},
}


@pytest.mark.parametrize("name", OTHER_CALLS)
def test_what_a_step_is_not_is_answered_or_refused_as_by_the_model(name):
    own, ours = own_and_ours(fresh_model("llama"), unchanged, OTHER_CALLS[name])
    if isinstance(own, Exception):
        assert isinstance(ours, Exception)
    else:
        torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-4)


def test_an_embedding_of_another_dtype_is_not_read_as_the_models():
    model = fresh_model("llama")
    own, ours = own_and_ours(model, lambda each: each.model.embed_tokens.bfloat16(), next_ids)
    torch.testing.assert_close(ours, own, rtol=1e-2, atol=1e-2)


def frozen_but(part):
    def change(model):
        model.requires_grad_(False)
        part(model).requires_grad_(True)

    return change


@pytest.mark.parametrize(
    ("change", "given"),
    [
        (frozen_but(lambda model: model.lm_head), next_ids),
        (frozen_but(lambda model: model.model.embed_tokens), next_ids),
        (
            lambda model: model.requires_grad_(False),
            lambda model: {"inputs_embeds": embedded(model).requires_grad_(True)},
        ),
    ],
    ids=["head", "embedding", "inputs"],
)
def test_what_learns_gets_its_gradient(change, given):
    own, ours = own_and_ours(fresh_model("llama"), change, given, grad=True)
    assert own.requires_grad
    assert ours.requires_grad


def test_codes_that_were_replaced_count():
    model = fresh_model("llama")
    pack_model(model, "int8")

    def change(each):
        up = each.model.layers[1].mlp.up_proj
        up.codes = up.codes.flip(0)

    own, ours = own_and_ours(model, change, next_ids)
    assert (ours - own).norm() < 0.05 * own.norm()


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_a_packed_model_without_any_norm_weights(form, monkeypatch):
    """It has no parameters that are not packed; transformers asks the first one for dtype and device."""
    steps, run = [], FusedSteps._run
    monkeypatch.setattr(FusedSteps, "_run", lambda *args: steps.append(1) or run(*args))
    model = fresh_model("olmo")
    pack_model(model, form)
    assert model.dtype == torch.float32
    with keyhole.attach(model, "dense"):
        assert model.generate(IDS, max_new_tokens=3, pad_token_id=0).shape == (2, 23)
    assert len(steps) == 2
    assert model.to(torch.bfloat16).dtype == torch.bfloat16


def test_the_comparison_does_not_stretch_rotations_that_grow():
    ropes = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    model = fresh_model("llama", max_position_embeddings=24, rope_parameters=ropes)
    wanted = answer(copy.deepcopy(model), IDS, steps=12)  # goes on beyond the range
    with keyhole.attach(model, "dense"):
        assert_same(answer(model, IDS, steps=12), wanted)
