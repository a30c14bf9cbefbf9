"""Weights that are on disk until a module is called, as accelerate's hooks do it."""

import pytest
import torch
from torch import nn

import keyhole
from keyhole.engines.transformers.devices import input_device
from tests.engines.transformers.running import answer, assert_same
from tests.tiny import fresh_model, prompt


class _Hook:
    execution_device = "cpu"


def offloaded(model):
    """Weights on the meta device, and a forward of each module that brings them in for the call."""
    for module in model.modules():
        if module._parameters:
            _offload(module)
    return model


def _offload(module):
    held = {name: weight for name, weight in module._parameters.items() if weight is not None}
    plain = module.forward

    def away():
        for name, weight in held.items():
            module._parameters[name] = nn.Parameter(weight.to("meta"))

    def forward(*args, **kwargs):
        module._parameters.update(held)
        try:
            return plain(*args, **kwargs)
        finally:
            away()

    away()
    module.forward, module._hf_hook = forward, _Hook()


METHODS = (
    "dense",
    "pqcache(budget=1.0, dense_below=0)",
    "a2ats(budget=1.0, dense_below=0)",
    "tokenselect(renumber=true, budget=1.0, dense_below=0)",
    "snapkv(budget=1.0)",
)


@pytest.mark.parametrize("method", METHODS)
def test_methods_for_the_cache_need_no_weights(method):
    model, ids = fresh_model("llama"), prompt(50)
    wanted = answer(model, ids, steps=3)
    offloaded(model)
    assert model.device.type == "meta"
    assert input_device(model) == torch.device("cpu")
    with keyhole.attach(model, method) as attached:
        assert_same(answer(model, ids, steps=3), wanted)
    assert len(attached.layers) == 2
    assert keyhole.KeyholeCache(model, method).served == 2


def test_chess_names_the_weight_and_the_way_out():
    model = offloaded(fresh_model("llama"))
    told = r"layers\.0\.mlp\.gate_proj\.weight is brought into memory.*without offloading.*leave `chess` out"
    with pytest.raises(keyhole.UnsupportedModelError, match=told), keyhole.attach(model, "chess"):
        pass


@pytest.mark.parametrize("method", ["dense", "shadowkv", "chess"])
def test_a_model_without_weights_is_refused(method):
    model = fresh_model("llama").to("meta")
    told = r"embed_tokens\.weight of this LlamaForCausalLM is on the meta device.*from_pretrained"
    with pytest.raises(keyhole.UnsupportedModelError, match=told), keyhole.attach(model, method):
        pass
