"""Attention weights in fixed point.

Legend: Hkv KV heads, G query heads of each, S tokens, D head size.
"""

from __future__ import annotations

# pyright: reportMissingImports=false
import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from keyhole.private.rates import STEP, steps_of
from keyhole.private.secure.numerics import UNIT, exp_of
from keyhole.private.secure.ranking import as_numbers
from keyhole.private.tournament import widths

_CURVED = (1 + STEP) ** 2 / 8 + STEP / 2  # of the line that is nearest to a reciprocal over [1, STEP]
HIDDEN = 64.0  # taken off scaled logits of what must not be read; those of a model lie within +-16


def key_scale(scale: float) -> float:
    """What queries and keys are each multiplied by, so that their products are logits times `UNIT`.

    In halves, since a query that was scaled down by all of it would lose its digits.
    """
    return (scale * UNIT) ** 0.5


def powers_of(scaled: Array) -> Array:
    """Unnormalised weights `[..., S]` of logits times `UNIT`: 1 for the largest.

    What lies more than 14 below it weighs exactly nothing.
    """
    return exp_of(scaled - largest(scaled))


def added(x: Array) -> Array:
    """The sum of `x [..., S]`: `[..., 1]`. (A reduction of JAX's would send a message for its public 0.)"""
    while x.shape[-1] > 1:
        half = x.shape[-1] // 2
        x = jnp.concatenate([x[..., :half] + x[..., half : 2 * half], x[..., 2 * half :]], axis=-1)
    return x


def normalised(products: Array, powers: Array) -> Array:
    """`products [..., D]` divided by the sums of `powers [..., S]`, of which one is 1."""
    sums = added(powers)
    near = jnp.concatenate([products, sums], axis=-1) * _factor(sums, powers.shape[-1])
    return near[..., :-1] * _inverse(near[..., -1:])


def inverse_sums(powers: Array) -> Array:
    """Reciprocals `[..., 1]` of the sums of `powers [..., S]`, of which one is 1."""
    sums = added(powers)
    factor = _factor(sums, powers.shape[-1])
    return factor * _inverse(sums * factor)


def _factor(sums: Array, most: int) -> Array:
    """A power of `STEP` that brings each sum in [1, `most`] into [1, `STEP`]."""
    ends = STEP ** np.arange(steps_of(most) + 1)
    above = as_numbers(sums > ends[1:].astype(np.float32))
    falls = (1 / ends[1:] - 1 / ends[:-1]).astype(np.float32)
    return 1 + above.astype(jnp.float32) @ falls[:, None]


def _inverse(near: Array) -> Array:
    """Of numbers in [1, `STEP`], to 5e-5: a line that is off by 0.7%, and a step of Newton's."""
    guess = (1 + STEP) / _CURVED - near / _CURVED
    return guess * (2 - near * guess)


def largest(x: Array) -> Array:
    """The greatest of `x [..., S]`: `[..., 1]`."""
    for width in widths(x.shape[-1], math.prod(x.shape[:-1])):
        # What fills the last group is there already, so that it changes no maximum.
        x = jnp.concatenate([x, x[..., : -x.shape[-1] % width]], axis=-1)
        x = _largest_of([x[..., place::width] for place in range(width)])
    return x


def _largest_of(parts: list[Array]) -> Array:
    """Elementwise, all pairs compared at once: one of the others, or the last where none of them wins."""
    count = len(parts)
    pairs = [(first, second) for first in range(count) for second in range(first + 1, count)]
    exceeded = jnp.stack([parts[second] for _, second in pairs]) > jnp.stack(
        [parts[first] for first, _ in pairs]
    )
    place = {pair: number for number, pair in enumerate(pairs)}
    wins = _all_of(
        [
            jnp.stack(
                [
                    ~exceeded[place[one, other]] if one < other else exceeded[place[other, one]]
                    for one in range(count - 1)
                    for other in [(one + step) % count]
                ]
            )
            for step in range(1, count)
        ]
    )
    # Negated, since SPU makes a number of a bit for a sum with fewer bytes than within a product.
    marks = (-wins.astype(jnp.int32)).astype(jnp.float32)
    return parts[-1] - added(jnp.moveaxis(marks * (jnp.stack(parts[:-1]) - parts[-1]), 0, -1))[..., 0]


def _all_of(bits: list[Array]) -> Array:
    """Whether all of them are set, elementwise, in a logarithmic number of rounds."""
    while len(bits) > 1:
        half = len(bits) // 2
        both = jnp.stack(bits[:half]) & jnp.stack(bits[half : 2 * half])
        bits = [*both, *bits[2 * half :]]
    return bits[0]
