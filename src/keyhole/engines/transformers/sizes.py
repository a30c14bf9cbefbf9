"""The sizes of a model's attention layers, from its configuration."""

from __future__ import annotations

from typing import NamedTuple

from transformers import PreTrainedConfig, PreTrainedModel


class Attention(NamedTuple):
    """The sizes of an attention layer."""

    query_heads: int
    kv_heads: int
    head_dim: int


def attention_sizes(config: PreTrainedConfig) -> Attention | None:
    """The attention sizes of a configuration's text model; None without attention heads."""
    config = config.get_text_config(decoder=True)
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        return None
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Attention(heads, kv_heads, head_dim)


def position_range(model: PreTrainedModel) -> int | None:
    """The longest sequence the model was made for, None where its configuration does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)
