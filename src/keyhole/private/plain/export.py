"""From a model of transformers to the plain format."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from keyhole.core.errors import UnsupportedModelError
from keyhole.private.files import Shape

_LLAMA = {
    "norm1": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "norm2": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_GPT2 = {"norm1": "ln_1", "o": "attn.c_proj", "norm2": "ln_2", "up": "mlp.c_fc", "down": "mlp.c_proj"}


def shape_of(config: Any) -> Shape:
    """The architecture by a model's configuration.

    Raises:
        UnsupportedModelError: it is not of the Llama or GPT-2 kind that secure computation has.
    """
    kinds = {"llama": _llama_shape, "gpt2": _gpt2_shape}
    if config.model_type not in kinds:
        raise UnsupportedModelError(
            f"private inference of a {config.model_type!r} model is not there; give one of {', '.join(kinds)}"
        )
    return kinds[config.model_type](config)


def _llama_shape(config: Any) -> Shape:
    rope = config.rope_parameters
    if rope["rope_type"] != "default":
        raise UnsupportedModelError(
            f"private inference has plain RoPE, not {rope['rope_type']!r}; give a model without "
            f"scaled positions"
        )
    if config.hidden_act != "silu":
        raise UnsupportedModelError(f"private inference has SwiGLU with silu, not {config.hidden_act!r}")
    return Shape(
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        config.vocab_size,
        config.max_position_embeddings,
        config.rms_norm_eps,
        "silu",
        gated=True,
        learned_positions=False,
        tied=config.tie_word_embeddings,
        rope_theta=rope["rope_theta"],
    )


def _gpt2_shape(config: Any) -> Shape:
    plain = config.scale_attn_weights and not config.scale_attn_by_inverse_layer_idx
    if config.activation_function not in ("gelu_new", "gelu_pytorch_tanh") or not plain:
        raise UnsupportedModelError(
            "private inference has GPT-2 with gelu_new and plain scaling of its logits"
        )
    return Shape(
        config.n_layer,
        config.n_embd,
        config.n_head,
        config.n_head,
        config.n_embd // config.n_head,
        config.vocab_size,
        config.n_positions,
        config.layer_norm_epsilon,
        "gelu_new",
        gated=False,
        learned_positions=True,
        tied=config.tie_word_embeddings,
        rope_theta=1.0,
    )


def weights_of(state: dict[str, Tensor], shape: Shape) -> dict[str, np.ndarray]:
    """The tensors of a model's `state_dict` under the plain format's names, float32."""
    plain = _gpt2_weights(state, shape) if shape.learned_positions else _llama_weights(state, shape)
    return {
        name: np.ascontiguousarray(tensor.detach().float().numpy())
        for name, tensor in plain.items()
        if tensor is not None
    }


def _llama_weights(state: dict[str, Tensor], shape: Shape) -> dict[str, Tensor | None]:
    plain: dict[str, Tensor | None] = {
        "embed": state["model.embed_tokens.weight"],
        "norm.w": state["model.norm.weight"],
    }
    if not shape.tied:
        plain["head"] = state["lm_head.weight"]
    for layer in range(shape.layers):
        for ours, theirs in _LLAMA.items():
            place = f"model.layers.{layer}.{theirs}"
            weight = state[f"{place}.weight"]
            plain[f"{layer}.{ours}.w"] = weight if weight.dim() == 1 else weight.T
            plain[f"{layer}.{ours}.b"] = state.get(f"{place}.bias")
    return plain


def _gpt2_weights(state: dict[str, Tensor], shape: Shape) -> dict[str, Tensor | None]:
    plain: dict[str, Tensor | None] = {
        "embed": state["transformer.wte.weight"],
        "positions": state["transformer.wpe.weight"],
        "norm.w": state["transformer.ln_f.weight"],
        "norm.b": state["transformer.ln_f.bias"],
    }
    if not shape.tied:
        plain["head"] = state["lm_head.weight"]
    for layer in range(shape.layers):
        place = f"transformer.h.{layer}"
        for kind in ("weight", "bias"):
            for ours, theirs in _GPT2.items():
                plain[f"{layer}.{ours}.{kind[0]}"] = state[f"{place}.{theirs}.{kind}"]
            joined = state[f"{place}.attn.c_attn.{kind}"].split(shape.hidden, dim=-1)
            for name, part in zip("qkv", joined, strict=True):
                plain[f"{layer}.{name}.{kind[0]}"] = part
    return plain
