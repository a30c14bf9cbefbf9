"""CHESS on whole models: what is skipped, what is not, and that nothing stays behind."""

from unittest.mock import patch

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, GPT2Config

import keyhole
from keyhole.engines.transformers.cache import end_prompt
from keyhole.engines.transformers.fingerprint import fingerprint
from keyhole.engines.transformers.sparse_ffn.activations import fit_activations
from keyhole.engines.transformers.sparse_ffn.sites import decoder_of, gated_sites, input_sites
from keyhole.engines.transformers.sparse_ffn.weights import activated_share, streamed_weights
from keyhole.feedforward import Rule, gated
from keyhole.feedforward.file import write_activations
from tests.tiny import FAMILIES, fresh_model, prompt, tiny_model

REFUSED = {"gpt_oss", "llama4", "mistral_sliding", "falcon_h1"}
SERVED = sorted(set(FAMILIES) - REFUSED)
METHOD = {"phi3": "chess(attention=false)"}

# Sizes of (hidden, feed-forward, layers, query heads, KV heads, vocabulary) and the published shares:
# of feed-forwards alone, and with attention, at sparsity 0.3, 0.5 and 0.7.
PUBLISHED = {
    "Llama-2-7B": ((4096, 11008, 32, 32, 32, 32000), 6.61, (86.9, 82.0, 78.16, 70.04, 69.4, 58.1)),
    "Llama-2-13B": ((5120, 13824, 40, 40, 40, 32000), 12.85, (86.8, 81.9, 77.97, 69.81, 69.2, 57.7)),
    "Llama-3-8B": ((4096, 14336, 32, 32, 8, 128256), 7.50, (85.0, 80.7, 74.96, 67.81, 65.0, 54.9)),
    "Mistral-7B": ((4096, 14336, 32, 32, 8, 32000), 7.11, (84.1, 79.6, 73.57, 66.02, 63.0, 52.4)),
}


def steps(model, cache, ids=None):
    """Logits `[B, T - 12, V]` of decode steps, after a prompt of 12 tokens."""
    ids = prompt(18) if ids is None else ids
    cache = DynamicCache(config=model.config) if cache is None else cache
    with torch.no_grad():
        model(input_ids=ids[:, :12], past_key_values=cache)
        end_prompt(cache)
        found = [
            model(input_ids=token, past_key_values=cache).logits for token in ids[:, 12:].split(1, dim=1)
        ]
    return torch.cat(found, dim=1)


def run(model, method):
    try:
        return steps(model, keyhole.make_cache(model, method))
    finally:
        keyhole.detach(model)


def described(model):
    """All that attaching could change."""
    return (
        {name: (tensor.stride(), tensor.clone()) for name, tensor in model.state_dict().items()},
        {name: id(module) for name, module in model.named_modules()},
        {name: id(parameter) for name, parameter in model.named_parameters()},
        (len(model._forward_pre_hooks), len(model._forward_hooks)),
    )


def same(before, after):
    tensors = all(
        before[0][name][0] == stride and torch.equal(before[0][name][1], tensor)
        for name, (stride, tensor) in after[0].items()
    )
    return tensors and before[1:] == after[1:] and before[0].keys() == after[0].keys()


@pytest.mark.parametrize("family", SERVED)
def test_a_family_is_served_and_left_as_it_was(family):
    model = fresh_model(family)
    before, dense = described(model), run(model, "dense")
    with keyhole.attach(model, METHOD.get(family, "chess")) as attachment:
        sparse = steps(model, None)
        assert 0.5 < attachment.activated.share < 0.95
    assert same(before, described(model))
    assert not torch.allclose(dense, sparse, atol=1e-4)
    assert torch.equal(run(model, "dense"), dense)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3_moe", "gemma2"])
def test_no_sparsity_is_dense_to_the_bit(family):
    model = fresh_model(family)
    before = described(model)
    cache = keyhole.make_cache(model, "chess(sparsity=0)")
    assert same(before[:3], described(model)[:3])  # but for the hooks by which caches are served
    assert torch.equal(steps(model, cache), run(model, "dense"))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3_moe", "glm4", "gemma2"])
@pytest.mark.parametrize("first", ["gate", "up"])
@pytest.mark.parametrize("weighting", ["mean", "norm", "none"])
def test_hardly_any_sparsity_is_close_to_dense(family, first, weighting):
    model = fresh_model(family)
    found = run(model, f"chess(sparsity=0.001, first={first}, weighting={weighting})")
    dense = run(model, "dense")
    assert float((found - dense).norm() / dense.norm()) < 0.01


def test_a_prompt_is_dense():
    model = fresh_model("llama")
    ids = prompt(40)
    with torch.no_grad():
        dense = model(input_ids=ids).logits
        cache = keyhole.make_cache(model, "chess(sparsity=0.9)")
        assert torch.allclose(model(input_ids=ids, past_key_values=cache).logits, dense, atol=1e-4)
    assert keyhole.activated(cache).share == 1
    keyhole.detach(model)


def test_what_is_skipped_for_queries_does_not_reach_keys_and_values():
    # One layer, so that what comes into it is the same.
    model = fresh_model("llama", num_hidden_layers=1)
    caches = [keyhole.make_cache(model, method) for method in ("dense", "chess(sparsity=0.9)")]
    dense, sparse = (steps(model, cache) for cache in caches)
    held = [keyhole.served_layers(cache)[0].storage for cache in caches]
    assert torch.equal(held[0].keys(), held[1].keys())
    assert torch.equal(held[0].values(), held[1].values())
    assert not torch.allclose(dense, sparse)
    keyhole.detach(model)


def test_caches_of_several_methods_take_turns_on_one_model():
    model = fresh_model("llama")
    methods = ("chess", "dense", "chess(sparsity=0.7, attention=false)", "oracle(budget=5) + chess")
    alone = [run(model, method) for method in methods]
    caches = [keyhole.make_cache(model, method) for method in methods]
    for expected, cache in zip(alone, caches, strict=True):
        assert torch.allclose(steps(model, cache), expected, atol=1e-4)
    shares = [keyhole.activated(cache).share for cache in caches]
    assert shares[1] == 1
    assert shares[0] == pytest.approx(shares[3], abs=0.1)
    keyhole.detach(model)


def test_two_models_of_one_configuration_side_by_side():
    first = fresh_model("llama")
    second = type(first)(first.config).eval()
    assert second.config is first.config
    before = described(second)
    expected = run(second, "chess(attention=false)")
    with keyhole.attach(first, "chess") as one:
        assert same(before, described(second))
        with keyhole.attach(second, "chess(attention=false)") as other:
            assert torch.allclose(steps(second, None), expected, atol=1e-4)
            steps(first, None)
            assert one.activated.share < other.activated.share - 0.1
    assert same(before, described(second))


def test_blocks_nest_and_an_error_ends_them():
    model = fresh_model("llama")
    before = described(model)

    def fail():
        with keyhole.attach(model, "chess"):
            with keyhole.attach(model, "chess(sparsity=0.7, first=up)") as inner:
                steps(model, None)
                assert inner.activated.share < 0.7
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert same(before, described(model))


def test_an_error_within_a_step_leaves_the_next_call_dense():
    model = fresh_model("llama")
    decoder = model.model
    with torch.no_grad():
        dense = decoder(input_ids=prompt(1)).last_hidden_state
        cache = keyhole.make_cache(model, "chess")
        cache.prompt_length = 0
        with patch.object(model.lm_head, "forward", side_effect=ZeroDivisionError):
            for _ in range(2):
                cache.prompt_length = 0
                with pytest.raises(ZeroDivisionError):
                    model(input_ids=prompt(1), past_key_values=cache)
                cache.roll_back()
        assert keyhole.activated(cache).share < 1
        # Not by a call of the model, whose hook would set things right.
        assert torch.allclose(decoder(input_ids=prompt(1)).last_hidden_state, dense, atol=1e-4)
    keyhole.detach(model)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_rows_of_a_batch_are_computed_as_alone(family):
    model = fresh_model(family)
    ids = prompt(18, rows=3)
    together = keyhole.make_cache(model, "chess")
    alone = [keyhole.make_cache(model, "chess") for _ in range(3)]
    found = steps(model, together, ids)
    for row, cache in enumerate(alone):
        assert torch.allclose(found[row], steps(model, cache, ids[row : row + 1])[0], atol=2e-3)
    shares = [keyhole.activated(cache).share for cache in alone]
    assert len(set(shares)) > 1
    assert keyhole.activated(together).share == pytest.approx(sum(shares) / 3, abs=0.002)
    keyhole.detach(model)


@pytest.mark.parametrize("slow", [True, False])
def test_bfloat16(slow, monkeypatch):
    monkeypatch.setattr(gated, "_has_bfloat16", lambda: not slow)
    for family in ("llama", "qwen3_moe"):
        model = fresh_model(family).bfloat16()
        before, dense = described(model), run(model, "dense")
        found = run(model, "chess(sparsity=0.01)")
        assert float((found - dense).float().norm() / dense.float().norm()) < 0.2
        assert same(before, described(model))


def test_inference_mode_leaves_weights_that_can_be_trained():
    model = fresh_model("llama")
    with torch.inference_mode():
        steps(model, keyhole.make_cache(model, "chess"))
    keyhole.detach(model)
    model(input_ids=prompt(4)).logits.sum().backward()
    assert model.model.layers[0].mlp.down_proj.weight.grad is not None


def test_counted_weights_are_those_that_were_skipped():
    model = fresh_model("llama")
    zeros = []
    cache = keyhole.make_cache(model, "chess(sparsity=0.6)")
    with (
        patch.object(gated.kernels, "matvec_skips", lambda _: True),
        patch.object(gated.kernels, "matvec_skip_columns", _counting(zeros)),
    ):
        steps(model, cache)
    found = keyhole.activated(cache)
    assert found.dense == 6 * streamed_weights(model)
    assert found.skipped == sum(zeros)
    assert found.share == pytest.approx(activated_share(model, 0.6, attention=True), abs=0.05)
    keyhole.detach(model)


def _counting(zeros):
    plain = gated.kernels.matvec_skip_columns

    def count(weight_t, x):
        # A layer multiplies with its projections q, o and down, in that order; up skips what down does.
        both = 2 if len(zeros) % 3 == 2 else 1
        zeros.append(both * int((x == 0).sum()) * weight_t.shape[1])
        return plain(weight_t, x)

    return count


@pytest.mark.parametrize("name", PUBLISHED)
def test_activated_weights_are_the_published_ones(name):
    (hidden, wide, layers, heads, kv_heads, vocabulary), billions, published = PUBLISHED[name]
    config = AutoConfig.for_model(
        "llama",
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert streamed_weights(model) / 1e9 == pytest.approx(billions, abs=0.006)
    found = [
        100 * activated_share(model, sparsity, attention=attention)
        for sparsity in (0.3, 0.5, 0.7)
        for attention in (False, True)
    ]
    assert found == pytest.approx(published, abs=0.06)


def test_experts_that_are_not_chosen_do_not_count():
    model = tiny_model("qwen3_moe")
    idle = 2 * 3 * 48 * 32 * 2  # two of four experts, three matrices, two layers
    every = sum(weight.numel() for weight in model.model.layers.parameters() if weight.dim() > 1)
    assert streamed_weights(model) == every + model.lm_head.weight.numel() - idle


@pytest.mark.parametrize("family", ["gpt_oss", "llama4"])
def test_feed_forwards_that_are_not_known_are_refused(family):
    model = fresh_model(family)
    before = described(model)
    with pytest.raises(keyhole.UnsupportedModelError, match="leave `chess` out"):
        keyhole.make_cache(model, "chess")
    assert same(before, described(model))


def test_a_feed_forward_without_a_gate_is_refused():
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=97, bos_token_id=None, eos_token_id=None)
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(keyhole.UnsupportedModelError, match="leave `chess` out"):
        keyhole.make_cache(model, "chess")


def test_a_feed_forward_that_looks_alike_but_is_not_is_refused():
    model = fresh_model("llama")
    mlp = model.model.layers[1].mlp

    class Shifted(type(mlp)):
        def forward(self, x):
            return self.down_proj(self.act_fn(self.gate_proj(x)) * (self.up_proj(x) + 1))

    mlp.__class__ = Shifted
    with pytest.raises(keyhole.UnsupportedModelError, match=r"layers\.1\.mlp"):
        keyhole.make_cache(model, "chess")


def test_one_projection_for_queries_and_keys_is_refused_with_the_way_out():
    with pytest.raises(keyhole.UnsupportedModelError, match="attention=false"):
        keyhole.make_cache(fresh_model("phi3"), "chess")


class _Adapted(nn.Linear):
    """A projection that computes more than its weight says, as those with adapters do."""


def test_projections_with_adapters_are_not_taken_for_plain_ones():
    model = fresh_model("llama")
    for layer in model.model.layers:
        layer.self_attn.q_proj.__class__ = _Adapted
    with pytest.raises(
        keyhole.UnsupportedModelError, match=r"self_attn\.q_proj is a .*_Adapted.*attention=f"
    ):
        keyhole.make_cache(model, "chess")


def test_a_model_that_skips_already_can_be_calibrated():
    model = fresh_model("llama")
    names = set(gated_sites(model)) | set(input_sites(model))
    expected = fit_activations(model, [prompt(30)], rule=Rule())
    keyhole.make_cache(model, "chess")
    assert set(gated_sites(model)) | set(input_sites(model)) == names
    found = fit_activations(model, [prompt(30)], rule=Rule())
    for name in names:
        assert torch.allclose(found[name].weights, expected[name].weights, rtol=1e-4)
    keyhole.detach(model)


def test_thresholds_of_a_file(tmp_path):
    model = fresh_model("llama")
    fitted = fit_activations(model, [prompt(50), prompt(7, seed=1)], rule=Rule("up"))
    write_activations(tmp_path, fitted, model=fingerprint(model), rule=Rule("up"), attention=True)
    spec = f"chess(first=up, file={str(tmp_path)!r}, sparsity="
    cache = keyhole.make_cache(model, f"{spec}0.5)")
    steps(model, cache)
    held = cache.layers[0].steps.feedforward.thresholds
    assert {name: len(threshold) for name, threshold in held.items()} == {
        name: len(each.weights) for name, each in fitted.items()
    }
    assert {len(held[name]) for name in gated_sites(model)} == {64}
    assert {len(held[name]) for name in input_sites(model)} == {1}
    assert all(torch.equal(held[name], fitted[name].threshold(0.5)) for name in fitted)
    more = keyhole.make_cache(model, f"{spec}0.8)")
    steps(model, more)
    assert keyhole.activated(more).share < keyhole.activated(cache).share - 0.1
    keyhole.detach(model)
    for wrong, told in (
        (f"{spec}0.5, attention=false)", "attention=True"),
        ("chess(file=x)", "chess"),
        (
            f"chess(first=gate, file={str(tmp_path)!r})",
            "weighted by",
        ),
    ):
        with pytest.raises(ValueError, match=told):
            keyhole.make_cache(model, wrong)
    with pytest.raises(ValueError, match="another model"):
        keyhole.make_cache(fresh_model("llama", initializer_range=0.2), f"{spec}0.5)")


def test_the_order_of_texts_does_not_matter():
    model = fresh_model("qwen3_moe")
    texts = [prompt(50), prompt(7, seed=1), prompt(20, seed=2)]
    there, back = (fit_activations(model, each, rule=Rule()) for each in (texts, texts[::-1]))
    for name, found in there.items():
        assert torch.allclose(found.weights, back[name].weights, rtol=1e-6)
        assert torch.allclose(found.quantiles, back[name].quantiles, rtol=0.01)


def test_experts_have_thresholds_of_their_own():
    model = fresh_model("qwen3_moe")
    found = fit_activations(model, [prompt(60)], rule=Rule(), attention=False)
    assert set(found) == {f"layers.{layer}.mlp.experts.{index}" for layer in (0, 1) for index in range(4)}
    one, other = (found[f"layers.0.mlp.experts.{index}"].threshold(0.5) for index in (0, 1))
    assert one.shape == (32,)
    assert not torch.allclose(one, other)


def test_user_hooks_run_in_all_calls_and_the_state_keeps_its_names():
    model = fresh_model("llama")
    names, called = list(model.state_dict()), []
    model.model.layers[0].mlp.register_forward_hook(lambda *_: called.append(1))
    cache = keyhole.make_cache(model, "chess")
    assert list(model.state_dict()) == names
    assert decoder_of(model).layers[0].mlp.hidden_size == 48
    called.clear()
    steps(model, cache)
    assert called == [1] * 7
    keyhole.detach(model)
