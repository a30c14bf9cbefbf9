"""Which models can be given positions beyond their range."""

import pytest
import torch
import transformers

from keyhole.core.errors import UnsupportedModelError
from keyhole.engines.transformers.far import check_far
from tests.tiny import fresh_model, tiny_model

SMALL = {"vocab_size": 97, "max_position_embeddings": 128}


def causal(name, **sizes):
    config = getattr(transformers, name)(**SMALL | sizes)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def rotated(**rotation):
    original = {"original_max_position_embeddings": 64}
    return fresh_model(
        "llama", max_position_embeddings=128, rope_parameters=rotation | original | {"rope_theta": 1e4}
    )


@pytest.mark.parametrize(
    "family",
    ["llama", "qwen3", "gemma2", "gemma3", "cohere2", "smollm3", "stablelm", "qwen3_next", "falcon_h1"],
)
def test_rotations_at_any_position(family):
    check_far(tiny_model(family, max_position_embeddings=128), 1_000_000)


@pytest.mark.parametrize(
    "rotation", [{"rope_type": "yarn", "factor": 2.0}, {"rope_type": "linear", "factor": 2.0}], ids=str
)
def test_scaled_rotations_that_stay_as_they_are(rotation):
    check_far(rotated(**rotation), 50_000)


@pytest.mark.parametrize(
    "rotation",
    [
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
    ],
    ids=lambda rotation: rotation["rope_type"],
)
def test_rotations_that_change_with_the_length(rotation):
    with pytest.raises(UnsupportedModelError, match=f"type '{rotation['rope_type']}'"):
        check_far(rotated(**rotation), 500)


def test_one_kind_of_layer_whose_rotation_changes():
    """Of layers that slide, which keep true positions, and are not looked at where keys are served."""
    forms = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e4},
        "sliding_attention": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
    }
    model = fresh_model("gemma3", rope_parameters=forms)
    with pytest.raises(UnsupportedModelError, match="'dynamic'"):
        check_far(model, 2000)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("GPT2Config", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}),
        ("OPTConfig", {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64}),
        ("GPTJConfig", {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "n_positions": 128}),
    ],
)
def test_positions_that_are_learned_or_in_a_table(name, sizes):
    more = {"word_embed_proj_dim": 64} if name == "OPTConfig" else {}
    with pytest.raises(UnsupportedModelError, match="texts beyond the range"):
        check_far(causal(name, **sizes, **more), 500)


def test_a_rotation_from_a_table(monkeypatch):
    """As code outside transformers has it: cosines of so many positions, made once."""
    model = fresh_model("llama", max_position_embeddings=128)
    cosines, sines = model.model.rotary_emb(torch.empty(0), torch.arange(128).unsqueeze(0))
    table = lambda x, position_ids: (cosines[0][position_ids], sines[0][position_ids])  # noqa: ARG005, E731
    monkeypatch.setattr(model.model.rotary_emb, "forward", table)
    with pytest.raises(UnsupportedModelError, match="no position 499"):
        check_far(model, 500)


@pytest.mark.parametrize("most", [127, 400])
def test_a_rotation_that_stops_turning(most, monkeypatch):
    model = fresh_model("llama", max_position_embeddings=128)
    turn = model.model.rotary_emb.forward
    stops = lambda x, position_ids: turn(x, position_ids.clamp(-most, most))  # noqa: E731
    monkeypatch.setattr(model.model.rotary_emb, "forward", stops)
    with pytest.raises(UnsupportedModelError, match="position 499"):
        check_far(model, 500)


def test_queries_that_are_scaled_by_their_positions():
    with pytest.raises(UnsupportedModelError, match="attn_temperature_tuning"):
        check_far(tiny_model("llama4"), 500)
    rotation = {"rope_type": "default", "rope_theta": 1e4, "llama_4_scaling_beta": 0.1}
    model = fresh_model("llama")
    model.config.rope_parameters = rotation
    with pytest.raises(UnsupportedModelError, match="llama_4_scaling_beta"):
        check_far(model, 500)
