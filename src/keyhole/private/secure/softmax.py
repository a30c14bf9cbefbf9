"""Attention weights in fixed point.

Legend: Hkv KV heads, G query heads of each, S tokens.
"""

from __future__ import annotations

# pyright: reportMissingImports=false
import jax.numpy as jnp
from jax import Array

from keyhole.private.secure.numerics import UNIT, exp_of

HIDDEN = 64.0  # taken off scaled logits of what must not be read; those of a model lie within +-16


def key_scale(scale: float) -> float:
    """What queries and keys are each multiplied by, so that their products are logits times `UNIT`.

    In halves, since a query that was scaled down by all of it would lose its digits.
    """
    return (scale * UNIT) ** 0.5


def weights(scaled: Array) -> tuple[Array, Array]:
    """Unnormalised weights `[..., S]` of logits times `UNIT`, and the reciprocal of their sum `[..., 1]`.

    What lies more than 14 below the largest logit weighs exactly nothing. The caller applies the reciprocal
    after the product with the values, to D numbers instead of S.
    """
    powers = exp_of(scaled - jnp.max(scaled, axis=-1, keepdims=True))
    return powers, 1.0 / jnp.sum(powers, axis=-1, keepdims=True)
