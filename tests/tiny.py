"""Tiny random models of many families, small enough to build and run in a fraction of a second.

Weights are drawn wide, so that attention is peaked and an answer depends on which tokens were read.
"""

from functools import cache

import torch
import transformers
from transformers import PreTrainedModel

VOCABULARY = 97

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_TWO_KINDS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 24}

# Name of the configuration class, and what differs from `_SIZES`.
FAMILIES: dict[str, tuple[str, dict]] = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {}),
    "qwen3_moe": ("Qwen3MoeConfig", _EXPERTS),
    "phi3": ("Phi3Config", {}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "mistral_sliding": ("MistralConfig", {"sliding_window": 24}),
    "gemma2": (
        "Gemma2Config",
        # Soft-capping is only in its own attention function; sdpa knows none, or passes over it.
        _TWO_KINDS
        | {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0, "attn_implementation": "eager"},
    ),
    "gemma3": ("Gemma3TextConfig", _TWO_KINDS | {"query_pre_attn_scalar": 16}),
    "gemma3n": (
        "Gemma3nTextConfig",
        # The last two layers read what the first two have cached.
        _TWO_KINDS
        | {
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 16,
            "laurel_rank": 8,
            "activation_sparsity_pattern": [0.0] * 4,
        },
    ),
    "gpt_oss": (
        "GptOssConfig",
        _TWO_KINDS
        | {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "attn_implementation": "eager",
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "granite": ("GraniteConfig", {"attention_multiplier": 0.25}),
    "cohere2": ("Cohere2Config", _TWO_KINDS | {"logit_scale": 1.0}),
    "olmo": ("OlmoConfig", {"clip_qkv": 2.0}),
    "olmo2": ("Olmo2Config", {}),
    "glm4": ("Glm4Config", {}),
    "smollm3": ("SmolLM3Config", {"no_rope_layers": [1, 0]}),
    "qwen3_next": (
        "Qwen3NextConfig",
        _EXPERTS
        | {
            "layer_types": ["linear_attention", "full_attention"],
            "shared_expert_intermediate_size": 32,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        },
    ),
    # Attention cuts out the channels that it rotates.
    "stablelm": ("StableLmConfig", {"hidden_size": 64, "partial_rotary_factor": 0.5}),
    # Each layer attends to the whole sequence, and has a linear-attention state beside.
    "falcon_h1": (
        "FalconH1Config",
        {
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_d_state": 16,
            "mamba_d_ssm": 64,
            "mamba_chunk_size": 32,
        },
    ),
    "llama4": (
        "Llama4TextConfig",
        {
            "intermediate_size_mlp": 64,
            "num_local_experts": 2,
            "no_rope_layers": [1, 0],
            "layer_types": ["chunked_attention", "full_attention"],
            "attention_chunk_size": 64,
        },
    ),
}

# No layer of these attends to the whole sequence, so nothing of them is served.
ALL_SLIDING = {"mistral_sliding"}


@cache
def tiny_model(family: str, **changes) -> PreTrainedModel:
    """The model of a family, in float32 and evaluation mode; the same object for the same question."""
    return fresh_model(family, **changes)


def fresh_model(family: str, **changes) -> PreTrainedModel:
    """As `tiny_model`, an object of its own."""
    kind, differences = FAMILIES[family]
    config = getattr(transformers, kind)(**_SIZES | differences | changes)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return widen_sinks(model).eval()


def widen_sinks(model: PreTrainedModel) -> PreTrainedModel:
    """Give attention sinks, where a model has them, logits that matter."""
    for name, parameter in model.named_parameters():
        if name.endswith(".sinks"):
            torch.nn.init.normal_(parameter, mean=1.0, std=1.0)
    return model


def prompt(tokens: int, *, rows: int = 1, seed: int = 0) -> torch.Tensor:
    """Token ids `[rows, tokens]`, none of which is padding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, (rows, tokens), generator=generator)
