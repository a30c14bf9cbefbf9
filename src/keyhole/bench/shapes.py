"""Sizes of public models, for models of the same shape with random weights."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from keyhole.engines.transformers.sizes import Attention

_SPARE_POSITIONS = 1024


@dataclass(frozen=True)
class Shape:
    """What decides how long a model computes.

    Attributes:
        family: the model type of transformers.
        tied: whether the output layer is the embedding.
    """

    family: str
    hidden: int
    intermediate: int
    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool

    @property
    def attention(self) -> Attention:
        return Attention(self.query_heads, self.kv_heads, self.head_dim)

    @property
    def parameters(self) -> int:
        """Weights of the large matrices."""
        attention = 2 * self.hidden * self.head_dim * (self.query_heads + self.kv_heads)
        embeddings = self.hidden * self.vocabulary * (1 if self.tied else 2)
        return embeddings + self.layers * (attention + 3 * self.hidden * self.intermediate)

    def model(self, dtype: torch.dtype, positions: int) -> PreTrainedModel:
        """A model of this shape with random weights, for sequences up to so many positions."""
        config = AutoConfig.for_model(
            self.family,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.query_heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            vocab_size=self.vocabulary,
            tie_word_embeddings=self.tied,
            max_position_embeddings=positions + _SPARE_POSITIONS,
            bos_token_id=None,
            eos_token_id=None,
        )
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()


SHAPES = {
    "SmolLM2-135M": Shape("llama", 576, 1536, 30, 9, 3, 64, 49_152, tied=True),
    "Llama-3.2-1B": Shape("llama", 2048, 8192, 16, 32, 8, 64, 128_256, tied=True),
    "Llama-3.2-3B": Shape("llama", 3072, 8192, 28, 24, 8, 128, 128_256, tied=True),
    "Llama-3.1-8B": Shape("llama", 4096, 14_336, 32, 32, 8, 128, 128_256, tied=False),
    "Qwen2.5-7B": Shape("qwen2", 3584, 18_944, 28, 28, 4, 128, 152_064, tied=False),
    "Qwen3-0.6B": Shape("qwen3", 1024, 3072, 28, 16, 8, 128, 151_936, tied=True),
    "Qwen3-1.7B": Shape("qwen3", 2048, 6144, 28, 16, 8, 128, 151_936, tied=True),
    "Qwen3-4B": Shape("qwen3", 2560, 9728, 36, 32, 8, 128, 151_936, tied=True),
    "Qwen3-8B": Shape("qwen3", 4096, 12_288, 36, 32, 8, 128, 151_936, tied=False),
}


def shape_named(name: str) -> Shape:
    """The shape of a public model.

    Raises:
        ValueError: not one of `SHAPES`.
    """
    if name not in SHAPES:
        close = difflib.get_close_matches(name, SHAPES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(SHAPES)}"
        raise ValueError(f"unknown shape {name!r}; {hint}")
    return SHAPES[name]


def cut(shape: Shape, layers: int) -> Shape:
    """The shape with so many layers; 0 leaves it whole.

    Raises:
        ValueError: more layers than it has.
    """
    if not 0 <= layers <= shape.layers:
        raise ValueError(f"{layers} layers are out of range; give 1 to {shape.layers}, or 0 for all")
    return replace(shape, layers=layers or shape.layers)
