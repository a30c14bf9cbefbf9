"""A decoder of the Llama or GPT-2 kind, from a secret prompt and secret weights to a secret token.

Legend: V vocabulary, E hidden size, Hkv KV heads, G query heads of each, T tokens of a call, D head size.
Weights are by name, as `keyhole.private.files` lists them, those of a layer without its number; matrices
are `[inputs, outputs]`.
"""

from __future__ import annotations

# pyright: reportMissingImports=false
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from keyhole.private.files import Shape
from keyhole.private.secure import numerics
from keyhole.private.secure.softmax import key_scale

Weights = dict[str, Any]


def embedded(tokens: Array, first: int, weights: Weights, shape: Shape) -> Array:
    """Hidden states `[T, E]` of one-hot int32 `tokens [T, V]` at positions from `first` on."""
    hidden = tokens.astype(jnp.float32) @ weights["embed"]
    if shape.learned_positions:
        hidden = hidden + weights["positions"][first : first + tokens.shape[0]]
    return hidden


def projected(hidden: Array, first: int, weights: Weights, shape: Shape) -> list[Array]:
    """Queries `[Hkv, G, T, D]`, keys and values `[Hkv, T, D]` of a layer; the first two scaled for the
    softmax."""
    normed = norm(hidden, "norm1", weights, shape)
    query, keys, values = (
        linear(normed, name, weights).reshape(len(hidden), -1, shape.head_dim) for name in "qkv"
    )
    scale = key_scale(shape.head_dim**-0.5)
    if shape.learned_positions:
        query, keys = query * scale, keys * scale
    else:
        cos, sin = _rotations(first, len(hidden), shape, scale)
        query, keys = (part * cos + _half_turned(part) * sin for part in (query, keys))
    query = jnp.moveaxis(query, 1, 0).reshape(shape.kv_heads, -1, len(hidden), shape.head_dim)
    return [query, jnp.moveaxis(keys, 1, 0), jnp.moveaxis(values, 1, 0)]


def after_attention(hidden: Array, attended: Array, weights: Weights, shape: Shape) -> Array:
    """The rest of a layer, given `attended [Hkv, G, T, D]`."""
    merged = jnp.moveaxis(attended.reshape(-1, *attended.shape[2:]), 0, 1).reshape(len(hidden), -1)
    hidden = hidden + linear(merged, "o", weights)
    normed = norm(hidden, "norm2", weights, shape)
    inner = numerics.ACTIVATIONS[shape.activation](linear(normed, "gate" if shape.gated else "up", weights))
    if shape.gated:
        inner = inner * linear(normed, "up", weights)
    return hidden + linear(inner, "down", weights)


def next_token(hidden: Array, weights: Weights, shape: Shape) -> Array:
    """The greedy token after the last of `hidden [T, E]`, int32 `[1]`."""
    last = norm(hidden[-1:], "norm", weights, shape)
    logits = last @ weights["embed" if shape.tied else "head"].T
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def norm(hidden: Array, name: str, weights: Weights, shape: Shape) -> Array:
    """RMSNorm, or LayerNorm where there is a bias."""
    if f"{name}.b" in weights:
        return numerics.layer_norm(hidden, weights[f"{name}.w"], weights[f"{name}.b"], shape.eps)
    return numerics.rms_norm(hidden, weights[f"{name}.w"], shape.eps)


def linear(hidden: Array, name: str, weights: Weights) -> Array:
    out = hidden @ weights[f"{name}.w"]
    return out + weights[f"{name}.b"] if f"{name}.b" in weights else out


def _rotations(first: int, count: int, shape: Shape, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines `[T, 1, D]`, times `scale`: public, as positions are."""
    frequencies = shape.rope_theta ** (-np.arange(0, shape.head_dim, 2) / shape.head_dim)
    angles = np.arange(first, first + count)[:, None] * frequencies
    angles = np.concatenate([angles, angles], axis=-1)[:, None]
    return (np.cos(angles) * scale).astype(np.float32), (np.sin(angles) * scale).astype(np.float32)


def _half_turned(x: Array) -> Array:
    half = x.shape[-1] // 2
    return jnp.concatenate([-x[..., half:], x[..., :half]], axis=-1)
