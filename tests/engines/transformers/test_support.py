"""Models that cannot be served are refused at once, with the reason, and left as they were."""

import pytest
import torch
from torch import nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.models.llama.modeling_llama import (
    ALL_ATTENTION_FUNCTIONS,
    LlamaAttention,
    apply_rotary_pos_emb,
)

import keyhole
from keyhole.engines.transformers.compat import given_cache
from keyhole.engines.transformers.handle import KVHandle
from tests.engines.transformers.running import answer, attention_of, given, left_padded
from tests.tiny import FAMILIES, fresh_model, prompt, tiny_model

PART = "oracle(budget=12, sinks=2, window=6)"

_LATENT = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 32,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "n_routed_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 2,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
}


class Changed(LlamaAttention):
    """Llama's attention, which lets `touch` at the keys on their way from the cache."""

    def touch(self, keys):
        return keys

    def extras(self):
        return {}

    def forward(self, hidden_states, position_embeddings, attention_mask=None, **kwargs):
        cache = given_cache(kwargs)
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        projections = (self.q_proj, self.k_proj, self.v_proj)
        query, key, value = (part(hidden_states).view(shape).transpose(1, 2) for part in projections)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
            key = self.touch(key)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, None)
        extras = {"scaling": self.scaling} | self.extras()
        out, weights = attend(self, query, key, value, attention_mask, **extras, **kwargs)
        return self.o_proj(out.reshape(*hidden_states.shape[:-1], -1)), weights


def changed(**methods):
    """A Llama model whose attention has other methods than `Changed`."""
    model = fresh_model("llama")
    for layer in model.model.layers:
        attention = type("Attention", (Changed,), methods)(model.config, layer.self_attn.layer_idx)
        attention.load_state_dict(layer.self_attn.state_dict())
        layer.self_attn = attention
    return model.eval()


def refused(model, message):
    """The model is refused with that message, and is what it was before."""
    before = attention_of(model), len(model._forward_pre_hooks)
    with pytest.raises(keyhole.UnsupportedModelError, match=message), keyhole.attach(model, PART):
        pass
    with pytest.raises(keyhole.UnsupportedModelError, match=message):
        keyhole.make_cache(model, PART)
    assert (attention_of(model), len(model._forward_pre_hooks)) == before


def test_an_attention_that_leaves_keys_alone_is_served():
    model = changed()
    ids = prompt(80)
    wanted = answer(model, ids)
    with keyhole.attach(model, "oracle(mass=1.0, sinks=2, window=6)"):
        torch.testing.assert_close(answer(model, ids).logits, wanted.logits, rtol=1e-4, atol=1e-4)


TOUCHES = {
    "converts": lambda _self, keys: keys.to(torch.float32),
    "moves": lambda _self, keys: keys.to(torch.device("meta")),
    "indexes": lambda _self, keys: keys[:, :, :1],
    "scales": lambda _self, keys: keys * 2,
    "shifts": lambda _self, keys: 1 + keys,
    "adds a tensor": lambda _self, keys: torch.zeros(1) + keys,
    "negates": lambda _self, keys: -keys,
    "projects": lambda _self, keys: keys @ torch.eye(16),
    "joins": lambda _self, keys: torch.cat([keys, keys]),
    "normalises": lambda _self, keys: nn.functional.normalize(keys),
    "measures": lambda _self, keys: keys[: keys.shape[0]],
    "unpacks": lambda _self, keys: next(iter(keys)),
}


@pytest.mark.parametrize("touch", TOUCHES.values(), ids=TOUCHES)
def test_refuses_a_model_that_touches_keys_between_cache_and_attention(touch):
    refused(changed(touch=touch), "changes keys or values after the cache and before attention")


@pytest.mark.parametrize("name", ["position_bias", "indices", "block_indices", "sinks"])
def test_refuses_a_model_that_asks_for_another_attention(name):
    refused(changed(extras=lambda _self: {name: torch.zeros(1)}), f"passes {name!r}")


def test_refuses_a_model_that_looks_ahead():
    refused(changed(extras=lambda _self: {"is_causal": False}), "lets tokens attend to later ones")


def test_refuses_a_model_that_keeps_keys_elsewhere():
    model = changed()
    for layer in model.model.layers:
        layer.self_attn.layer_idx = 0
    refused(model, "does not store all its layers' keys in the cache it is given")


@pytest.mark.parametrize(
    ("kind", "config"), [(DeepseekV3ForCausalLM, DeepseekV3Config), (DeepseekV2ForCausalLM, DeepseekV2Config)]
)
def test_refuses_latent_attention(kind, config):
    model = kind(config(**_LATENT))
    refused(model, f"{kind.__name__} uses multi-head latent attention .kv_lora_rank=16.: it expands keys")


def test_refuses_encoder_decoders():
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    model = T5ForConditionalGeneration(T5Config(vocab_size=97, **sizes))
    refused(model, "T5ForConditionalGeneration is an encoder-decoder; Keyhole serves decoder-only models")


def test_refuses_a_model_with_an_attention_of_its_own():
    model = BloomForCausalLM(BloomConfig(vocab_size=97, hidden_size=16, n_layer=1, n_head=2))
    refused(model, "BloomForCausalLM does not call its attention through transformers' AttentionInterface")


def test_refuses_a_model_that_needs_more_than_token_ids():
    class Fussy(LlamaForCausalLM):
        def forward(self, input_ids, past_key_values=None, *, picture, **kwargs):
            raise NotImplementedError

    refused(Fussy(tiny_model("llama").config), "cannot run on token ids and a cache alone: .*'picture'")


@pytest.mark.parametrize("thing", [None, "a name", nn.Linear(1, 1)], ids=["none", "name", "module"])
def test_refuses_what_is_no_model(thing):
    with pytest.raises(keyhole.UnsupportedModelError, match="is not a transformers model"):
        keyhole.make_cache(thing, PART)


def test_refuses_weights_that_are_not_finite():
    model = fresh_model("llama")
    model.model.layers[1].self_attn.k_proj.weight.data[3, 3] = torch.nan
    with pytest.raises(keyhole.NonFiniteError, match="keys of tokens from 0 on"), keyhole.attach(model, PART):
        pass
    assert attention_of(model) == ["sdpa"]


def test_values_that_stop_being_finite_are_not_stored():
    model = fresh_model("llama")
    with keyhole.attach(model, PART) as attached:
        model(prompt(60))
        model.model.layers[0].self_attn.v_proj.weight.data[0] = torch.inf
        with pytest.raises(keyhole.NonFiniteError, match="values of tokens from 60 on"):
            model(prompt(1), **given(attached.cache))
        assert attached.layers[0].length == 60
    assert attention_of(model) == ["sdpa"]


def test_what_a_mask_hides_is_never_read():
    """Padding on the right, and holes."""
    model = tiny_model("llama")
    ids, right = left_padded(prompt(100), prompt(60, seed=1))
    ids, right, holes = ids.flip(1), right.flip(1), torch.ones(1, 100, dtype=torch.long)
    holes[0, 40:44] = 0
    for tokens, mask in ((ids, right), (prompt(100), holes)):
        wanted = answer(model, tokens, mask=mask)
        with keyhole.attach(model, "oracle(mass=1.0, floor=1000000, sinks=2, window=6)"):
            found = answer(model, tokens, mask=mask)
        torch.testing.assert_close(found.logits, wanted.logits, rtol=1e-4, atol=1e-4)


def test_masks_of_numbers_are_refused():
    model = tiny_model("llama")
    mask = torch.zeros(1, 1, 20, 20).masked_fill(~torch.ones(20, 20, dtype=torch.bool).tril(), -1e9)
    with keyhole.attach(model, PART), pytest.raises(keyhole.UnsupportedModelError, match="boolean masks"):
        model(prompt(20), attention_mask=mask)


def test_the_check_runs_once_and_does_not_count():
    model = fresh_model("llama")
    calls = []
    hook = model.register_forward_pre_hook(lambda *_: calls.append(1))
    with keyhole.attach(model, PART) as attached:
        assert attached.cache is None
        asked = len(calls)
    with keyhole.attach(model, PART):
        pass
    hook.remove()
    assert len(calls) == asked > 0


def test_the_check_draws_no_random_numbers():
    model = fresh_model("llama")
    state = torch.get_rng_state()
    with keyhole.attach(model, PART):
        assert torch.equal(torch.get_rng_state(), state)


def test_a_handle_is_no_tensor():
    layer = keyhole.make_cache(tiny_model("llama"), "dense").layers[0].inner
    keyhole.detach(tiny_model("llama"))
    handle = KVHandle(layer)
    assert handle.layer is layer
    layer.append(torch.ones(1, 2, 3, 16), torch.ones(1, 2, 3, 16))
    assert handle.to(torch.device("cpu")) is handle
    for use in (
        len,
        iter,
        bool,
        torch.relu,
        lambda h: h.shape,
        lambda h: h**2,
        lambda h: 2 / h,
        lambda h: h - 1,
    ):
        with pytest.raises(keyhole.UnsupportedModelError):
            use(handle)


def test_every_family_is_named_once():
    assert len({(kind, str(options)) for kind, options in FAMILIES.values()}) == len(FAMILIES)
