"""A model is known again by all that makes its keys and values, and differences are named."""

import copy
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers import LlamaForCausalLM

from keyhole import UnsupportedModelError, attach
from keyhole.engines.transformers.fingerprint import fingerprint
from keyhole.engines.transformers.identity import differences, identity
from tests.tiny import fresh_model

YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 5e5, "original_max_position_embeddings": 256}
LLAMA3 = YARN | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def named(found):
    return "; ".join(found)


def changed(family="llama", **changes):
    """A model with the weights of the plain one, as far as they fit, and another configuration."""
    other = fresh_model(family, **changes)
    other.load_state_dict(fresh_model(family).state_dict(), strict=False)
    return other


def written(name, write):
    def make():
        model = fresh_model("llama")
        identity(model)  # known before it is written to
        write(model.get_parameter(name))
        return model

    return make


def add_one(weight):
    with torch.no_grad():
        weight[-1] += 1


def add_behind_its_back(weight):
    weight.data += 1e-3


def other_frequencies():
    model = fresh_model("llama")
    model.model.rotary_emb.inv_freq *= 0.5
    return model


def turned_over():
    model = fresh_model("llama")
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq.flip(0)
    return model


def with_number(path, name, value):
    def make():
        model = fresh_model("llama")
        setattr(model.get_submodule(path), name, value)
        return model

    return make


class OtherClass(LlamaForCausalLM):
    pass


def of_another_class():
    plain = fresh_model("llama")
    other = OtherClass(plain.config).eval()
    other.load_state_dict(plain.state_dict())
    return other


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def parametrized():
    model = fresh_model("llama")
    parametrize.register_parametrization(model.model.layers[0].self_attn.k_proj, "weight", Doubled())
    return model


def replaced():
    model = fresh_model("llama")
    identity(model)
    model.model.norm.weight = nn.Parameter(model.model.norm.weight * 2)
    return model


LAYER = "model.layers.0."
DIFFERENT = {
    "keys": (written(f"{LAYER}self_attn.k_proj.weight", add_one), "weights"),
    "values": (written(f"{LAYER}self_attn.v_proj.weight", add_one), "weights"),
    "embeddings": (written("model.embed_tokens.weight", add_one), "weights"),
    "norm": (written(f"{LAYER}input_layernorm.weight", add_one), "weights"),
    "feed-forward": (written(f"{LAYER}mlp.down_proj.weight", add_one), "weights"),
    "head": (written("lm_head.weight", add_one), "weights"),
    "data": (written(f"{LAYER}self_attn.k_proj.weight", add_behind_its_back), "weights"),
    "another parameter": (replaced, "weights"),
    "theta": (
        lambda: changed(rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
        "rope_parameters",
    ),
    "yarn": (lambda: changed(rope_parameters=YARN), r"rope_parameters.*yarn"),
    "llama3": (lambda: changed(rope_parameters=LLAMA3), r"rope_parameters.*llama3"),
    "linear": (
        lambda: changed(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}),
        "rope_parameters",
    ),
    "dynamic": (
        lambda: changed(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
        "rope_parameters",
    ),
    "frequencies": (other_frequencies, "rotary frequencies"),
    "bfloat16": (lambda: fresh_model("llama").bfloat16(), "dtype.*float32.*bfloat16"),
    "float16": (lambda: fresh_model("llama").half(), "dtype.*float16"),
    "rounded": (lambda: fresh_model("llama").bfloat16().float(), "rotary frequencies.*weights"),
    "epsilon": (lambda: changed(rms_norm_eps=1e-5), "rms_norm_eps=1e-06; this model has 1e-05"),
    "activation": (lambda: changed(hidden_act="gelu"), "hidden_act"),
    "heads": (lambda: fresh_model("llama", num_key_value_heads=4), "num_key_value_heads=2.*4"),
    "layers": (lambda: fresh_model("llama", num_hidden_layers=3), "num_hidden_layers"),
    "bias": (lambda: fresh_model("llama", attention_bias=True), "attention_bias"),
    "family": (lambda: fresh_model("qwen3"), 'model_type="llama".*"qwen3"'),
    "turned over": (turned_over, "rotary frequencies"),
    "module's epsilon": (with_number("model.norm", "variance_epsilon", 0.1), r"LlamaRMSNorm.*0\.1"),
    "module's scale": (with_number(f"{LAYER}self_attn", "scaling", 1.0), r"LlamaAttention\.scaling"),
    "rotation's scale": (with_number("model.rotary_emb", "attention_scaling", 1.3), "attention_scaling"),
    "class": (of_another_class, "LlamaForCausalLM; this model has OtherClass"),
    "parametrization": (parametrized, "parametrizations.*Doubled"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_another_model_is_told_by_what_differs(name):
    make, word = DIFFERENT[name]
    plain, other = fresh_model("llama"), make()
    found = differences(identity(plain), identity(other))
    assert found
    assert re.search(word, named(found)), found
    assert fingerprint(plain) != fingerprint(other)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gemma3", {"sliding_window": 32}),
        ("gemma3", {"layer_types": ["full_attention", "full_attention"]}),
        ("gemma2", {"attn_logit_softcapping": 3.0}),
        ("gemma2", {"query_pre_attn_scalar": 32}),
        ("granite", {"attention_multiplier": 0.5}),
        ("qwen3_next", {"num_experts_per_tok": 1}),
        ("smollm3", {"no_rope_layers": [0, 1]}),
    ],
)
def test_settings_of_other_families(family, changes):
    found = differences(identity(fresh_model(family)), identity(changed(family, **changes)))
    assert next(iter(changes)) in named(found)


def reloaded(tmp_path):
    model = fresh_model("llama")
    model.save_pretrained(tmp_path)
    return type(model).from_pretrained(tmp_path)


EQUAL = {
    "reloaded": reloaded,
    "copied": lambda _: copy.deepcopy(fresh_model("llama")),
    "eager": lambda _: fresh_model("llama", attn_implementation="eager"),
    "other ids": lambda _: fresh_model("llama", eos_token_id=3, use_cache=False, attention_dropout=0.1),
    "no gradients": lambda _: fresh_model("llama").requires_grad_(False),
    "training mode": lambda _: fresh_model("llama").train(),
}


@pytest.mark.parametrize("name", EQUAL)
def test_an_equal_model_is_known_again(name, tmp_path):
    plain, other = fresh_model("llama"), EQUAL[name](tmp_path)
    assert differences(identity(plain), identity(other)) == []
    assert fingerprint(plain) == fingerprint(other)


def test_tied_weights_equal_untied_ones_of_the_same_numbers():
    tied = fresh_model("llama", tie_word_embeddings=True)
    untied = fresh_model("llama")
    untied.load_state_dict(tied.state_dict())
    assert fingerprint(tied) == fingerprint(untied)


@pytest.mark.parametrize("method", ["oracle", "chess(sparsity=0.3) + oracle"])
def test_a_block_changes_nothing(method):
    model = fresh_model("llama")
    before = identity(model)
    with attach(model, method):
        assert identity(model) == before
    assert identity(model) == before


def test_a_length_dependent_rotation_may_have_been_used():
    model = changed(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    before = identity(model)
    model(torch.ones(1, 1500, dtype=torch.long))
    assert identity(model) == before


def test_weights_are_read_once(monkeypatch):
    from keyhole.engines.transformers import weights

    model, read = fresh_model("llama"), []
    real = weights.digest
    monkeypatch.setattr(weights, "digest", lambda tensor: read.append(1) or real(tensor))
    identity(model)
    first = len(read)
    fingerprint(model)
    assert len(read) == first > 0
    add_one(model.model.norm.weight)
    identity(model)
    assert len(read) == first + 1


def test_weights_that_are_nowhere_are_named():
    model = fresh_model("llama")
    model.model.layers[1].mlp.up_proj.to("meta")
    with pytest.raises(UnsupportedModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight.*on meta"):
        identity(model)


def test_offloaded_weights_are_read_where_they_are():
    model = fresh_model("llama")
    before = identity(model)
    site = model.model.layers[1].mlp.up_proj

    hook = SimpleNamespace(weights_map={"weight": site.weight.data})
    site.to("meta")
    site._hf_hook = hook
    assert identity(model) == before


@pytest.fixture
def adapted():
    peft = pytest.importorskip("peft")
    settings = {"r": 4, "lora_alpha": 64, "target_modules": ["k_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    model = peft.get_peft_model(fresh_model("llama"), peft.LoraConfig(**settings)).eval()
    model.add_adapter("b", peft.LoraConfig(**settings))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def test_adapters_at_work_are_named(adapted):
    base = adapted.get_base_model()
    default = identity(base)
    adapted.set_adapter("b")
    assert "adapters {'active': {'default'" in named(differences(default, identity(base)))
    adapted.set_adapter("default")
    assert differences(default, identity(base)) == []
    base.model.layers[0].self_attn.k_proj.scaling["default"] = 3.0
    assert "3.0" in named(differences(default, identity(base)))
    base.model.layers[0].self_attn.k_proj.scaling["default"] = 16.0
    add_one(base.model.layers[0].self_attn.k_proj.lora_B["default"].weight)
    assert "weights" in named(differences(default, identity(base)))


def test_adapters_that_are_off_leave_the_plain_model(adapted):
    base, plain = adapted.get_base_model(), identity(fresh_model("llama"))
    with adapted.disable_adapter():
        assert differences(plain, identity(base)) == []
    assert differences(plain, identity(base))


def test_a_merged_adapter_is_named(adapted):
    base = adapted.get_base_model()
    before = identity(base)
    adapted.merge_adapter()
    assert "merged" in named(differences(before, identity(base)))
    adapted.unmerge_adapter()
    assert "merged" not in named(differences(before, identity(base)))


@pytest.mark.parametrize("write", ["data", "numpy"])
def test_one_number_written_behind_torch_is_seen_anew(write):
    model = fresh_model("llama")
    before = identity(model)
    weight = model.model.layers[1].self_attn.k_proj.weight
    if write == "data":
        weight.data[3, 7] += 1
    else:
        weight.detach().numpy()[3, 7] += 1
    assert "weights" in named(differences(before, identity(model, reread=True)))


def test_packed_weights_are_refused():
    model = fresh_model("llama")
    quantised = pytest.importorskip("torch.ao.quantization").quantize_dynamic(model, {nn.Linear})
    with pytest.raises(UnsupportedModelError, match=r"layers\.0\..*packed weights"):
        identity(quantised)
