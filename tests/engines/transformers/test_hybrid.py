"""Models whose layers hold a linear-attention state, in layers of their own or beside keys and values."""

import pytest
import torch
import transformers
from transformers import DynamicCache
from transformers.cache_utils import LinearAttentionCacheLayerMixin

import keyhole
from keyhole.core.errors import UnsupportedCacheError
from keyhole.engines.transformers.compat import cache_argument
from tests.engines.transformers.running import answer, assert_same, left_padded
from tests.tiny import _SIZES, prompt

_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 12, "mamba_d_state": 16, "mamba_chunk_size": 32}
# Configuration, what differs, and how many of two layers attend to the whole sequence.
HYBRIDS = {
    "falcon_h1": ("FalconH1Config", _MAMBA | {"mamba_d_ssm": 96}, 2),
    "zamba": (
        "ZambaConfig",
        {
            "layer_types": ["linear_attention", "hybrid"],
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "n_mamba_heads": 2,
            "mamba_d_state": 8,
        },
        1,
    ),
    "zamba2": (
        "Zamba2Config",
        {
            "layer_types": ["linear_attention", "hybrid"],
            "hybrid_layer_ids": [1],
            "num_mem_blocks": 1,
            "mamba_ngroups": 1,
            "n_mamba_heads": 8,
            "mamba_d_state": 16,
            "use_mem_rope": True,
            "attention_head_dim": 24,
            "chunk_size": 32,
        },
        1,
    ),
    "zaya": ("ZayaConfig", {"num_experts": 4, "num_experts_per_tok": 1}, 2),
    "jamba": ("JambaConfig", {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8}, 1),
    "bamba": ("BambaConfig", _MAMBA | {"attn_layer_indices": [1]}, 1),
    "granite_hybrid": (
        "GraniteMoeHybridConfig",
        _MAMBA
        | {"layer_types": ["mamba", "attention"], "num_local_experts": 4, "shared_intermediate_size": 32},
        1,
    ),
    "nemotron_h": (
        "NemotronHConfig",
        {
            "layers_block_type": ["mamba", "attention"],
            "mamba_num_heads": 8,
            "mamba_head_dim": 12,
            "ssm_state_size": 16,
            "chunk_size": 32,
            "n_groups": 1,
        },
        1,
    ),
    "lfm2": ("Lfm2Config", {"layer_types": ["conv", "full_attention"]}, 1),
}
BESIDE = ["falcon_h1", "zamba", "zamba2", "zaya"]  # both in one layer
METHODS = ("dense", "pqcache(budget=1.0, dense_below=0)", "snapkv(budget=1.0)")


@pytest.fixture(scope="module")
def models():
    return {}


def built(models, name):
    if name not in models:
        kind, differences, _ = HYBRIDS[name]
        config = getattr(transformers, kind)(**_SIZES | differences)
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        for part, scale in model.named_parameters():
            if part.endswith(".temp"):  # of keys; zero in a fresh model
                torch.nn.init.ones_(scale)
        models[name] = model
    return models[name]


@pytest.mark.parametrize("name", HYBRIDS)
def test_full_budget_is_the_models_own_attention(models, name, recwarn):
    model, ids = built(models, name), prompt(80)
    wanted = answer(model, ids, steps=4)
    for method in METHODS:
        with keyhole.attach(model, method) as attached:
            assert_same(answer(model, ids, steps=4), wanted)
        assert len(attached.layers) == HYBRIDS[name][2]
        assert attached.usage.tokens
    assert not [warning for warning in recwarn if "no layer of this" in str(warning.message)]


@pytest.mark.parametrize("name", BESIDE)
def test_a_small_budget_reads_little(models, name):
    model = built(models, name)
    with keyhole.attach(model, "oracle(budget=4, dense_below=0, sinks=0, window=1)") as attached:
        answer(model, prompt(80), steps=3)
    assert attached.usage.read / attached.usage.tokens < 0.15


@pytest.mark.parametrize("name", BESIDE)
def test_rows_of_a_batch(models, name):
    model = built(models, name)
    ids, mask = left_padded(prompt(60), prompt(41, seed=1))
    options = {"mask": mask, "steps": 4}
    wanted = answer(model, ids, **options)
    with keyhole.attach(model, "pqcache(budget=1.0, dense_below=0)"):
        assert_same(answer(model, ids, **options), wanted)


@pytest.mark.parametrize("name", BESIDE)
def test_beams_take_both_states_along(models, name):
    model, ids = built(models, name), prompt(50, rows=2)
    options = {
        "max_new_tokens": 5,
        "num_beams": 3,
        "do_sample": False,
        "attention_mask": torch.ones_like(ids),
    }
    wanted = model.generate(ids, **options)
    with keyhole.attach(model, "quest(budget=1.0, dense_below=0)") as attached:
        assert torch.equal(model.generate(ids, **options), wanted)
    assert attached.usage.steps


def stepped(model, cache, ids):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=True, **{cache_argument(model): cache}).logits


@pytest.mark.parametrize("name", BESIDE)
def test_rows_are_picked_and_repeated_in_both_states(models, name):
    model, ids = built(models, name), prompt(40, rows=3)
    picked = torch.tensor([2, 0])
    with keyhole.attach(model, "dense"):
        cache, alone = DynamicCache(config=model.config), DynamicCache(config=model.config)
        stepped(model, cache, ids[:, :-1])
        for layer in cache.layers:  # layers with a linear state alone have no `batch_select_indices`
            select = getattr(layer, "batch_select_indices", layer.reorder_cache)
            select(picked)
        stepped(model, alone, ids[picked, :-1])
        wanted = stepped(model, alone, ids[picked, -1:])
        torch.testing.assert_close(stepped(model, cache, ids[picked, -1:]), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BESIDE)
def test_a_state_that_cannot_be_taken_back_is_not_cropped(models, name):
    model, ids = built(models, name), prompt(40)
    with keyhole.attach(model, "dense"):
        cache = DynamicCache(config=model.config)
        stepped(model, cache, ids)
        layer = cache.layers[-1]
        with pytest.raises(UnsupportedCacheError, match=r"linear-attention state .* 3 tokens"):
            layer.crop(-3)
        layer.crop(0)
        assert layer.get_seq_length() == 40


@pytest.mark.parametrize("name", BESIDE)
def test_a_cache_that_was_filled_before_is_taken_over_with_its_state(models, name):
    model, ids = built(models, name), prompt(40)
    plain, cache = DynamicCache(config=model.config), DynamicCache(config=model.config)
    for each in (plain, cache):
        stepped(model, each, ids[:, :-2])
    wanted = [stepped(model, plain, token) for token in ids[:, -2:].split(1, dim=1)]
    with keyhole.attach(model, "pqcache(budget=1.0, dense_below=0)") as attached:
        found = [stepped(model, cache, token) for token in ids[:, -2:].split(1, dim=1)]
        assert attached.usage.steps
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BESIDE)
def test_a_reset_cache_starts_again(models, name):
    model, ids = built(models, name), prompt(30)
    with keyhole.attach(model, "dense"):
        cache = DynamicCache(config=model.config)
        first = stepped(model, cache, ids)
        cache.reset()
        torch.testing.assert_close(stepped(model, cache, ids), first)


@pytest.mark.parametrize("name", BESIDE)
def test_a_saved_cache_has_both_states_or_is_not_saved(models, name, tmp_path):
    model, ids = built(models, name), prompt(30)
    with keyhole.attach(model, "dense"):
        cache = keyhole.KeyholeCache(model, "dense")
        stepped(model, cache, ids[:, :-1])
        try:
            cache.save(tmp_path / "cache")
        except UnsupportedCacheError:
            return
        found = keyhole.KeyholeCache.load(tmp_path / "cache", model)
        wanted = stepped(model, cache, ids[:, -1:])
        torch.testing.assert_close(stepped(model, found, ids[:, -1:]), wanted)


@pytest.mark.parametrize("name", ["falcon_h1"])
def test_tools_for_linear_states_find_them(models, name):
    model = built(models, name)
    cache = keyhole.KeyholeCache(model, "dense")
    assert all(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers)
    with keyhole.attach(model, "dense"):
        stepped(model, cache, prompt(9))
    assert cache.has_previous_state()
