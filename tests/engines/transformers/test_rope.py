"""The rotations found for a model are those between its key projection and its cache."""

from functools import cache

import pytest
import torch
import transformers
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionAndFullAttentionLayer

import keyhole
from keyhole import UnsupportedModelError
from keyhole.core.rope import NoRope
from keyhole.engines.transformers.compat import cache_argument
from keyhole.engines.transformers.rope import ModelRope, layer_rope
from keyhole.kernels import apply_rotary
from tests.engines.transformers.running import answer, assert_same
from tests.tiny import ALL_SLIDING, FAMILIES, fresh_model, prompt, tiny_model

SERVED = [family for family in FAMILIES if family not in ALL_SLIDING]
# Layers without rotation; all others rotate.
WITHOUT = {"cohere2": [1], "smollm3": [1], "llama4": [1]}
TOKENS = 70


def cached_keys(model, **inputs):
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(prompt(TOKENS), **{cache_argument(model): cache}, **inputs)
    kinds = (DynamicLayer, LinearAttentionAndFullAttentionLayer)
    return [layer.keys if type(layer) in kinds else None for layer in cache.layers]


def projected_keys(model):
    """What goes into each layer's rotation, `[1, Hkv, T, D]`: its key projection, or the norm behind that."""
    seen, size = {}, model.config.head_dim

    def hook(place):
        def keep(_module, _args, out):
            by_head = out.dim() == 4 and out.shape[2] == TOKENS
            seen[place] = out if by_head else out.reshape(1, TOKENS, -1, size).transpose(1, 2)

        return keep

    handles = [
        module.register_forward_hook(hook(int(name.split(".layers.")[1].split(".")[0])))
        for name, module in model.named_modules()
        if name.endswith((".k_proj", ".k_norm"))
    ]
    try:
        with torch.no_grad():
            model(prompt(TOKENS))
    finally:
        for handle in handles:
            handle.remove()
    return seen


@pytest.mark.parametrize("family", [family for family in SERVED if family != "phi3"])
def test_unrotated_keys_are_the_projected_ones(family):
    model, positions = tiny_model(family), torch.arange(TOKENS).unsqueeze(0)
    projected, checked = projected_keys(model), 0
    for place, keys in enumerate(cached_keys(model)):
        if keys is None or place not in projected:
            continue
        rope = layer_rope(model, place)
        assert isinstance(rope, NoRope) == (place in WITHOUT.get(family, []))
        found = rope.unrotate(keys, positions)
        if family == "llama4":  # normalised behind the rotation
            found, projected[place] = (
                torch.nn.functional.normalize(x, dim=-1) for x in (found, projected[place])
            )
        torch.testing.assert_close(found, projected[place], rtol=1e-4, atol=1e-4)
        checked += 1
    assert checked


@pytest.mark.parametrize("family", SERVED)
def test_keys_of_one_text_elsewhere_differ_by_the_rotation(family):
    """Attention is relative: moved on as a whole, a text has the same keys but for their rotation."""
    model = tiny_model(family)
    positions = torch.arange(TOKENS).unsqueeze(0)
    here, there = cached_keys(model, position_ids=positions), cached_keys(model, position_ids=positions + 500)
    for place, (keys, moved) in enumerate(zip(here, there, strict=True)):
        if keys is not None:
            found = layer_rope(model, place).rotate(keys, torch.full((1, TOKENS), 500))
            torch.testing.assert_close(found, moved, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("family", SERVED)
def test_rotations_are_a_group_of_isometries(family):
    model = tiny_model(family)
    served = [place for place, keys in enumerate(cached_keys(model)) if keys is not None]
    keys = torch.randn(3, 2, 5, 16, generator=torch.Generator().manual_seed(0))
    for place in served:
        rope = layer_rope(model, place)
        a, b = (
            torch.tensor([[0, 1, 7, 63, 999]]),
            torch.tensor([[5, 4, 3, 2, 1], [0] * 5, [-1000, 9, 1, 1, 1]]),
        )
        torch.testing.assert_close(rope.rotate(keys, a).norm(dim=-1), keys.norm(dim=-1))
        torch.testing.assert_close(rope.unrotate(rope.rotate(keys, a), a), keys, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            rope.rotate(rope.rotate(keys, a), b), rope.rotate(keys, a + b), rtol=1e-3, atol=1e-3
        )


@pytest.mark.parametrize("family", SERVED)
def test_what_a_kernel_is_told_is_the_rotation(family):
    model = tiny_model(family)
    served = [place for place, keys in enumerate(cached_keys(model)) if keys is not None]
    keys = torch.randn(1, 2, 5, 16, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 1, 7, 63, 9_999]])
    for place in served:
        rope = layer_rope(model, place)
        turning = rope.turning(16, keys.device)
        assert turning is not None
        found = apply_rotary(keys, positions.unsqueeze(1), turning)
        torch.testing.assert_close(found, rope.rotate(keys, positions), rtol=1e-4, atol=1e-4)


def test_a_rotation_of_another_kind_has_no_numbers_for_a_kernel(monkeypatch):
    rope = layer_rope(fresh_model("llama"), 0)
    assert rope.turning(8, torch.device("cpu")) is None
    rotate = rope.rotate
    monkeypatch.setattr(rope, "rotate", lambda vectors, positions: rotate(vectors, 2 * positions))
    assert rope.turning(16, torch.device("cpu")) is None


def test_the_scale_of_yarn_stays_in():
    """It scales cosine and sine; a rotation that did so would not be orthogonal."""
    yarn = {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "original_max_position_embeddings": 128,
    }
    model = fresh_model("llama", rope_parameters=yarn)
    rope = layer_rope(model, 0)
    assert isinstance(rope, ModelRope)
    assert rope.scaling == pytest.approx(1 + 0.1 * torch.tensor(8.0).log().item())
    keys, positions = cached_keys(model)[0], torch.arange(TOKENS).unsqueeze(0)
    plain = projected_keys(model)[0]
    torch.testing.assert_close(rope.unrotate(keys, positions), rope.scaling * plain, rtol=1e-4, atol=1e-4)


def test_bfloat16():
    model = fresh_model("llama").to(torch.bfloat16)
    assert isinstance(layer_rope(model, 1), ModelRope)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("dynamic", {}), ("longrope", {"long_factor": [2.0] * 8, "short_factor": [1.0] * 8})],
)
def test_refuses_what_changes_with_the_length(kind, options):
    options = options | {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0}
    model = fresh_model("llama", rope_parameters=options | {"original_max_position_embeddings": 128})
    with pytest.raises(UnsupportedModelError, match=f"{kind}.*depends on the length"):
        layer_rope(model, 0)
    with pytest.raises(UnsupportedModelError, match=kind), keyhole.attach(model, "a2ats"):
        pass


def test_found_inside_a_request():
    """The rotation may be asked for where hooks are in place; it must not look like a request."""
    model = fresh_model("llama")
    with keyhole.attach(model, "oracle(budget=8)") as attached:
        model.generate(prompt(40), max_new_tokens=2)
        cache = attached.cache
        layer_rope(model, 0)
        assert attached.cache is cache


_TEXT = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
_AXES = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
_VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
_TOWER = {"depth": 1, "num_heads": 2, "patch_size": 7, "in_channels": 3}
UNROTATING = ("a2ats", "shadowkv", "tokenselect(distance=512)", "tokenselect(renumber=true)")


def _qwen2_vl():
    vision = _TOWER | {"embed_dim": 32, "hidden_size": 64, "spatial_merge_size": 1, "temporal_patch_size": 1}
    ids = {"image_token_id": 90, "video_token_id": 91, "vision_start_token_id": 92, "vision_end_token_id": 93}
    config = transformers.Qwen2VLConfig(
        text_config=_TEXT | {"rope_parameters": _AXES}, vision_config=vision, **ids
    )
    return transformers.Qwen2VLForConditionalGeneration(config)


def _qwen2_5_vl():
    vision = _TOWER | {"hidden_size": 32, "out_hidden_size": 64, "intermediate_size": 32}
    config = transformers.Qwen2_5_VLConfig(
        text_config=_TEXT | {"rope_parameters": _AXES}, vision_config=vision
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def _qwen3_vl():
    vision = _TOWER | {
        "hidden_size": 32,
        "out_hidden_size": 64,
        "intermediate_size": 32,
        "deepstack_visual_indexes": [0],
    }
    text = _TEXT | {"rope_parameters": _AXES, "head_dim": 16}
    config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision)
    return transformers.Qwen3VLForConditionalGeneration(config)


def _mistral3():
    config = transformers.Mistral3Config(
        text_config=_TEXT | {"model_type": "mistral", "sliding_window": None},
        vision_config=_VISION | {"model_type": "pixtral", "head_dim": 16, "image_size": 32, "patch_size": 8},
        image_token_id=90,
    )
    return transformers.Mistral3ForConditionalGeneration(config)


def _causal(name, **changes):
    config = getattr(transformers, name)(**_TEXT | changes)
    return transformers.AutoModelForCausalLM.from_config(config)


OTHERS = {
    "phi": lambda: _causal("PhiConfig"),
    "persimmon": lambda: _causal("PersimmonConfig"),
    "stablelm_parallel": lambda: _causal("StableLmConfig", use_parallel_residual=True),
    "gpt_neox": lambda: _causal("GPTNeoXConfig", rotary_pct=0.25),
    "glm": lambda: _causal("GlmConfig", head_dim=16),
    "nemotron": lambda: _causal("NemotronConfig"),
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "mistral3_pixtral": _mistral3,
}


@cache
def other_model(name):
    torch.manual_seed(0)
    return OTHERS[name]().float().eval()


@pytest.mark.parametrize("name", OTHERS)
def test_rotations_of_a_part_and_of_several_axes(name):
    """Moved on as a whole, a text has the same keys but for their rotation."""
    model = other_model(name)
    positions = torch.arange(TOKENS).unsqueeze(0)

    def keys(moved):
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model.base_model(
                prompt(TOKENS).clamp(max=89), position_ids=positions + moved, **{cache_argument(model): cache}
            )
        return [layer.keys for layer in cache.layers]

    for place, (here, there) in enumerate(zip(keys(0), keys(500), strict=True)):
        rope = layer_rope(model, place)
        assert not isinstance(rope, NoRope)
        assert not torch.allclose(here, there, atol=1e-2)
        moved = rope.rotate(here, torch.full((1, TOKENS), 500))
        torch.testing.assert_close(moved, there, rtol=1e-3, atol=2e-3)
        turning = rope.turning(here.shape[-1], here.device)
        assert turning is not None
        found = apply_rotary(here, torch.full((1, 1, TOKENS), 500), turning)
        torch.testing.assert_close(found, there, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("method", UNROTATING)
def test_methods_that_unrotate_serve_them(name, method):
    model, ids = other_model(name), prompt(60).clamp(max=89)
    wanted = answer(model, ids, steps=3)
    separator = ", " if "(" in method else "("
    full = f"{method.rstrip(')')}{separator}budget=1.0, dense_below=0)"
    if "shadowkv" in method:
        full = full.replace("budget", "rank=1000, budget")
    with keyhole.attach(model, full) as attached:
        assert_same(answer(model, ids, steps=3), wanted)
    assert len(attached.layers) == 2
    assert attached.usage.steps


@pytest.mark.parametrize(
    "name", ["GPT2Config", "OPTConfig", "BloomConfig", "GPTJConfig", "BioGptConfig", "CTRLConfig"]
)
@pytest.mark.parametrize("method", UNROTATING)
def test_positions_that_are_no_rotation_are_refused(name, method):
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "ffn_dim": 64, "dff": 64, "rotary_dim": 8}
    model = _causal(name, **sizes, **({"word_embed_proj_dim": 64} if name == "OPTConfig" else {})).eval()
    with pytest.raises(UnsupportedModelError), keyhole.attach(model, method):
        pass


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("method", ["a2ats", "shadowkv", "tokenselect(renumber=true)"])
def test_positions_whose_axes_differ_are_refused_when_they_come(name, method):
    """As those of an image in the prompt; steps behind it are refused, too, and other requests are served."""
    model, ids = other_model(name), prompt(60).clamp(max=89)
    axes = torch.arange(60).expand(3, 1, 60).clone()
    axes[1:, :, 20:36] = 20 + torch.stack([torch.arange(16) // 4, torch.arange(16) % 4]).unsqueeze(1)

    def steps():
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            options = {cache_argument(model): cache, "use_cache": True}
            model(input_ids=ids, position_ids=axes, **options)
            for position in (44, 45):
                at = torch.full((3, 1, 1), position)
                logits = model(input_ids=ids[:, :1], position_ids=at, **options).logits
        return logits

    wanted = steps()
    sizes = "budget=8, dense_below=0, sinks=2, window=4)"
    method = f"{method.rstrip(')')}{', ' if '(' in method else '('}{sizes}"
    with keyhole.attach(model, "pqcache(budget=1.0, dense_below=0)"):
        torch.testing.assert_close(steps(), wanted, rtol=1e-4, atol=1e-4)
    with keyhole.attach(model, method) as attached:
        with pytest.raises(UnsupportedModelError, match="images or videos"):
            steps()
        answer(model, ids, steps=3)
        assert attached.usage.steps
    assert not model.get_decoder()._forward_pre_hooks
