"""What of an engine is refused, with the reason; without vLLM."""

from types import SimpleNamespace

import pytest

from keyhole.core.errors import UnsupportedModelError
from keyhole.engines.vllm.support import check_engine, check_layer
from keyhole.methods import Recipe

_SERVED = {
    "use_mla": False,
    "is_encoder_decoder": False,
    "is_mm_prefix_lm": False,
    "cache_dtype": "auto",
    "dtype": "torch.float32",
    "speculative_config": None,
    "decode_context_parallel_size": 1,
    "prefill_context_parallel_size": 1,
    "pipeline_parallel_size": 1,
    "use_ubatching": False,
}


def _config(**other):
    everything = SimpleNamespace(**_SERVED | other)
    parts = ("model_config", "cache_config", "parallel_config")
    return SimpleNamespace(
        **dict.fromkeys(parts, everything), speculative_config=everything.speculative_config
    )


def test_an_ordinary_engine_is_served():
    check_engine(_config(), Recipe.parse("quest"))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"use_mla": True}, "latent attention"),
        ({"is_encoder_decoder": True}, "decoder-only"),
        ({"is_mm_prefix_lm": True}, "both directions"),
        ({"cache_dtype": "fp8"}, "not as fp8"),
        ({"cache_dtype": "bfloat16"}, "not as bfloat16"),
        ({"speculative_config": object()}, "--speculative-config"),
        ({"decode_context_parallel_size": 2}, "--decode-context-parallel-size 1"),
        ({"prefill_context_parallel_size": 2}, "--prefill-context-parallel-size 1"),
        ({"pipeline_parallel_size": 2}, "--pipeline-parallel-size 1"),
        ({"use_ubatching": True}, "--enable-dbo"),
    ],
)
def test_engines_are_refused(other, said):
    with pytest.raises(UnsupportedModelError, match=said):
        check_engine(_config(**other), Recipe.parse("quest"))


@pytest.mark.parametrize(
    ("method", "said"),
    [("chess", "skips weights"), ("quest(renumber=true, sparse_prefill=true)", "other positions")],
)
def test_methods_are_refused(method, said):
    with pytest.raises(UnsupportedModelError, match=said):
        check_engine(_config(), Recipe.parse(method))


def _layer(**other):
    held = {"attn_type": "decoder", "alibi_slopes": None, "kv_sharing_target_layer_name": None}
    return SimpleNamespace(**held | other)


def test_layers():
    assert check_layer(_layer(), None)
    assert not check_layer(_layer(), 128)
    assert not check_layer(_layer(attn_type="encoder_only"), None)


@pytest.mark.parametrize(
    ("other", "said"),
    [({"alibi_slopes": [1.0]}, "ALiBi"), ({"kv_sharing_target_layer_name": "model.layers.0"}, "of others")],
)
def test_layers_are_refused(other, said):
    with pytest.raises(UnsupportedModelError, match=said):
        check_layer(_layer(**other), None)
