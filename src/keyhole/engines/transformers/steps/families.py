"""Llama-shaped models as arithmetic with their weights."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from keyhole.attention import Logits
from keyhole.engines.transformers.steps.linears import NotUnderstoodError, linear, linear_parts, weight_of
from keyhole.kernels.decoder.fit import misfit
from keyhole.kernels.decoder.types import Decoder, DecoderLayer, DecoderSizes, Norm

_FAMILIES = ("granite", "llama", "mistral", "olmo", "olmo2", "phi3", "qwen2", "qwen3", "smollm3")
_ACTIVATIONS = ("silu", "swish")


class Attending(NamedTuple):
    """Where a layer's keys and values are in a cache, and how its queries read them."""

    place: int
    logits: Logits


class Understood(NamedTuple):
    """A model's decoder as arithmetic, and what attention comes between."""

    decoder: Decoder
    attention: tuple[Attending, ...]


def family_of(decoder: nn.Module) -> str | None:
    """The family of a decoder of transformers' own; None where it is another one, or a subclass."""
    home = type(decoder).__module__
    return next((each for each in _FAMILIES if home == _home(each)), None)


def understand(model: PreTrainedModel) -> Understood:
    """The decoder of a model as its weights are now; they are shared.

    Raises:
        NotUnderstoodError: with what is not.
    """
    decoder: Any = model.get_decoder()
    family = family_of(decoder)
    if family is None:
        raise NotUnderstoodError(f"{type(decoder).__name__} is of no family that is known to be Llama-shaped")
    config = decoder.config
    _check_classes(decoder, _home(family))
    if config.hidden_act not in _ACTIVATIONS:
        raise NotUnderstoodError(f"the activation is {config.hidden_act!r}, not silu")
    layers = decoder.layers[: config.num_hidden_layers]
    sizes = _sizes(decoder, config)
    arithmetic = Decoder(sizes, tuple(_layer(layer, sizes) for layer in layers), _norm(decoder.norm))
    unlike = misfit(arithmetic)
    if unlike is not None:
        raise NotUnderstoodError(unlike)
    return Understood(
        arithmetic,
        tuple(Attending(each.self_attn.layer_idx, Logits(each.self_attn.scaling)) for each in layers),
    )


def _home(family: str) -> str:
    return f"transformers.models.{family}.modeling_{family}"


def _check_classes(decoder: nn.Module, home: str) -> None:
    """Raise NotUnderstoodError for a part of another class than the family's, torch's, or a projection's."""
    for name, module in decoder.named_modules():
        known = (home, "transformers.activations", "torch.nn.modules")
        if not type(module).__module__.startswith(known) and not hasattr(module, "matrix"):
            kind = type(module)
            raise NotUnderstoodError(f"{name} is a {kind.__module__}.{kind.__qualname__}")
        if isinstance(module, nn.Dropout) and module.p and module.training:
            raise NotUnderstoodError(f"{name} drops out")


def _sizes(decoder: Any, config: Any) -> DecoderSizes:
    first = decoder.layers[0]
    attention, mlp = first.self_attn, first.mlp
    heads, norm = config.num_attention_heads, getattr(attention, "q_norm", None)
    wide = mlp.down_proj.in_features
    return DecoderSizes(
        config.hidden_size,
        wide,
        heads,
        config.num_key_value_heads or heads,
        attention.head_dim,
        norms_all_heads=norm is not None and norm.weight.shape[0] != attention.head_dim,
        residual=float(getattr(first, "residual_multiplier", 1.0)),
        embedding=float(getattr(decoder, "embedding_multiplier", 1.0)),
        clip=float(getattr(config, "clip_qkv", None) or 0.0),
        dtype=decoder.norm.weight.dtype if hasattr(decoder.norm, "weight") else decoder.dtype,
    )


def _layer(layer: Any, sizes: DecoderSizes) -> DecoderLayer:
    attention, mlp = layer.self_attn, layer.mlp
    if ACT2FN[mlp.config.hidden_act].__class__ is not type(_activation(mlp)):
        raise NotUnderstoodError(f"the activation is a {type(_activation(mlp)).__name__}, not silu")
    width, narrow = sizes.heads * sizes.head_size, sizes.kv_heads * sizes.head_size
    if hasattr(attention, "qkv_proj"):
        query, key, value = linear_parts(attention.qkv_proj, (width, narrow, narrow))
    else:
        query, key, value = map(linear, (attention.q_proj, attention.k_proj, attention.v_proj))
    if hasattr(mlp, "gate_up_proj"):
        gate, up = linear_parts(mlp.gate_up_proj, (sizes.forward, sizes.forward))
    else:
        gate, up = linear(mlp.gate_proj), linear(mlp.up_proj)
    after = hasattr(layer, "post_feedforward_layernorm")  # norms of what comes out of both parts
    names = ("post_attention_layernorm", "post_feedforward_layernorm")
    ending = [_norm(getattr(layer, name)) for name in names] if after else [None, None]
    return DecoderLayer(
        query,
        key,
        value,
        linear(attention.o_proj),
        gate,
        up,
        linear(mlp.down_proj),
        before_attention=_norm(layer.input_layernorm) if hasattr(layer, "input_layernorm") else None,
        query_norm=_norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
        key_norm=_norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
        after_attention=ending[0],
        before_forward=None if after else _norm(layer.post_attention_layernorm),
        after_forward=ending[1],
        rotates=bool(getattr(attention, "use_rope", True)),
    )


def _activation(mlp: Any) -> nn.Module:
    return mlp.act_fn if hasattr(mlp, "act_fn") else mlp.activation_fn


def _norm(norm: Any) -> Norm:
    if type(norm).__name__.endswith("RMSNorm"):
        return Norm(weight_of(norm), norm.variance_epsilon)
    if type(norm).__name__ == "OlmoLayerNorm":
        return Norm(None, 1e-5, centred=True)
    raise NotUnderstoodError(f"a norm is a {type(norm).__name__}")
