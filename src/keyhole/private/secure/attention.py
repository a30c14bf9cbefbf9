"""Exact attention of one new token over all that is kept, or over a selection of it.

Legend: Hkv KV heads, G query heads of each, N slots, D head size, C competing clusters, K clusters read.
Queries and keys come multiplied by `softmax.key_scale`.
"""

from __future__ import annotations

# pyright: reportMissingImports=false
import jax.numpy as jnp
from jax import Array

from keyhole.private.secure.packing import product
from keyhole.private.secure.selection import Chosen
from keyhole.private.secure.softmax import normalised, powers_of
from keyhole.private.sizes import Reading


def attend_all(query: Array, keys: Array, values: Array) -> Array:
    """`query [Hkv, G, D]` over `keys, values [Hkv, N, D]`: `[Hkv, G, D]`."""
    powers = powers_of(logits(query, keys))
    return normalised(product(powers, values), powers)


def logits(query: Array, keys: Array) -> Array:
    """`[Hkv, G, N]` of `query [Hkv, G, D]` and `keys [Hkv, N, D]`."""
    return product(query, jnp.swapaxes(keys, 1, 2))


def attend_rows(
    query: Array, keys: Array, values: Array, chosen: Chosen, reading: Reading, fine: int
) -> Array:
    """Over sinks, window and the chosen clusters, whose keys and values are copied in one product."""
    heads, slots, width = keys.shape
    begin, end = reading.first, -(-reading.stop // fine) * fine
    both = jnp.concatenate([keys, values], axis=-1)
    clusters = both[:, begin:end].reshape(heads, (end - begin) // fine, fine * 2 * width)
    copied = product(chosen.hot, clusters).reshape(heads, -1, 2 * width)
    read = jnp.concatenate([both[:, :begin], both[:, reading.stop :], copied], axis=1)
    scaled = logits(query, read[..., :width])
    always = slots - reading.stop + begin
    hidden = jnp.broadcast_to(chosen.hidden, (heads, reading.ranked, fine)).reshape(heads, 1, -1)
    scaled = jnp.concatenate([scaled[..., :always], scaled[..., always:] + hidden], axis=-1)
    powers = powers_of(scaled)
    return normalised(product(powers, read[..., width:]), powers)


def attend_logits(
    query: Array, keys: Array, values: Array, chosen: Chosen, reading: Reading, fine: int
) -> Array:
    """The same, without a copy of keys or values.

    A product of secret numbers sends bytes for its results only. So all logits are made, those of the chosen
    clusters copied, and their weights put back in their places, where all others are 0.
    """
    begin, end = reading.first, -(-reading.stop // fine) * fine
    heads, group, _ = query.shape
    scaled = logits(query, keys)
    copied = product(chosen.hot, _by_cluster(scaled[..., begin:end], fine)).reshape(heads, -1, group, fine)
    copied = (jnp.moveaxis(copied, 2, 1) + jnp.expand_dims(chosen.hidden, -3)).reshape(heads, group, -1)
    always = jnp.concatenate([scaled[..., :begin], scaled[..., reading.stop :]], axis=-1)
    powers = powers_of(jnp.concatenate([always, copied], axis=-1))
    count = always.shape[-1]
    placed = product(jnp.swapaxes(chosen.hot, 1, 2), _by_cluster(powers[..., count:], fine))
    placed = jnp.moveaxis(placed.reshape(heads, -1, group, fine), 2, 1).reshape(heads, group, -1)
    # The window's part of the youngest cluster got weight 0 there, and has its own in `powers`.
    placed = placed[..., : reading.stop - begin]
    spread = jnp.concatenate([powers[..., :begin], placed, powers[..., begin:count]], axis=-1)
    return normalised(product(spread, values), powers)


def _by_cluster(numbers: Array, fine: int) -> Array:
    """`[Hkv, G, C * fine]` as `[Hkv, C, G * fine]`."""
    heads, group, _ = numbers.shape
    return jnp.moveaxis(numbers.reshape(heads, group, -1, fine), 1, 2).reshape(heads, -1, group * fine)
