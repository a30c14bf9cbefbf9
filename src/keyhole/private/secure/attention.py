"""Exact attention of one new token over all that is kept, or over a selection of it.

Legend: Hkv KV heads, G query heads of each, N slots, D head size, C competing clusters, K clusters read.
Queries and keys come multiplied by `softmax.key_scale`.
"""

from __future__ import annotations

# pyright: reportMissingImports=false
import jax.numpy as jnp
from jax import Array

from keyhole.private.secure.selection import Chosen
from keyhole.private.secure.softmax import weights
from keyhole.private.sizes import Reading


def attend_all(query: Array, keys: Array, values: Array) -> Array:
    """`query [Hkv, G, D]` over `keys, values [Hkv, N, D]`: `[Hkv, G, D]`."""
    powers, inverse = weights(jnp.einsum("hgd,hnd->hgn", query, keys))
    return jnp.einsum("hgn,hnd->hgd", powers, values) * inverse


def attend_rows(
    query: Array, keys: Array, values: Array, chosen: Chosen, reading: Reading, fine: int
) -> Array:
    """Over sinks, window and the chosen clusters, whose keys and values are copied in one product."""
    heads, slots, width = keys.shape
    begin, end = reading.first, -(-reading.stop // fine) * fine
    both = jnp.concatenate([keys, values], axis=-1)
    clusters = both[:, begin:end].reshape(heads, (end - begin) // fine, fine * 2 * width)
    copied = jnp.einsum("hkc,hcx->hkx", chosen.hot.astype(jnp.float32), clusters)
    copied = copied.reshape(heads, -1, 2 * width)
    read = jnp.concatenate([both[:, :begin], both[:, reading.stop :], copied], axis=1)
    scaled = jnp.einsum("hgd,hnd->hgn", query, read[..., :width])
    always = slots - reading.stop + begin
    hidden = jnp.broadcast_to(chosen.hidden, (heads, reading.ranked, fine)).reshape(heads, 1, -1)
    scaled = jnp.concatenate([scaled[..., :always], scaled[..., always:] + hidden], axis=-1)
    powers, inverse = weights(scaled)
    return jnp.einsum("hgn,hnd->hgd", powers, read[..., width:]) * inverse


def attend_logits(
    query: Array, keys: Array, values: Array, chosen: Chosen, reading: Reading, fine: int
) -> Array:
    """The same, without a copy of keys or values.

    A product of secret numbers sends bytes for its results only. So all logits are made, those of the chosen
    clusters copied, and their weights put back in their places, where all others are 0.
    """
    begin, end = reading.first, -(-reading.stop // fine) * fine
    heads, group, _ = query.shape
    marks = chosen.hot.astype(jnp.float32)
    scaled = jnp.einsum("hgd,hnd->hgn", query, keys)
    clusters = scaled[..., begin:end].reshape(heads, group, -1, fine)
    copied = jnp.einsum("hkc,hgcf->hgkf", marks, clusters)
    copied = (copied + jnp.expand_dims(chosen.hidden, -3)).reshape(heads, group, -1)
    always = jnp.concatenate([scaled[..., :begin], scaled[..., reading.stop :]], axis=-1)
    powers, inverse = weights(jnp.concatenate([always, copied], axis=-1))
    count = always.shape[-1]
    placed = jnp.einsum("hkc,hgkf->hgcf", marks, powers[..., count:].reshape(heads, group, -1, fine))
    # The window's part of the youngest cluster got weight 0 there, and has its own in `powers`.
    placed = placed.reshape(heads, group, -1)[..., : reading.stop - begin]
    powers = jnp.concatenate([powers[..., :begin], placed, powers[..., begin:count]], axis=-1)
    return jnp.einsum("hgn,hnd->hgd", powers, values) * inverse
