"""Products of all heads at once.

Legend: B heads, R rows, X summed, Y columns.
"""

from __future__ import annotations

# pyright: reportMissingImports=false
import jax.numpy as jnp
from jax import Array

from keyhole.private.packing import way_of


def product(left: Array, right: Array) -> Array:
    """`left [B, R, X]` times `right [B, X, Y]`: `[B, R, Y]`; whole numbers in `left` send less."""
    heads, rows, inner = left.shape
    way = way_of(heads, rows, inner, right.shape[2])
    if way == "diagonal":
        return _diagonal(left, right)
    if way == "wide":
        return _wide(left, right)
    return jnp.einsum("brx,bxy->bry", left.astype(right.dtype), right)


def _diagonal(left: Array, right: Array) -> Array:
    heads, rows, inner = left.shape
    # Rows of B + 1 heads' width, cut off at B heads' width, put each head below and to the right of the last.
    apart = jnp.pad(jnp.moveaxis(left, 0, 1), ((0, 0), (0, 0), (0, heads * inner)))
    diagonal = apart.reshape(rows, -1)[:, : heads * heads * inner].reshape(rows * heads, heads * inner)
    made = diagonal.astype(right.dtype) @ right.reshape(heads * inner, -1)
    return jnp.moveaxis(made.reshape(rows, heads, -1), 1, 0)


def _wide(left: Array, right: Array) -> Array:
    heads, rows, inner = left.shape
    flat = left.reshape(heads * rows, inner).astype(right.dtype)
    made = (flat @ jnp.moveaxis(right, 0, 1).reshape(inner, -1)).reshape(heads, rows, heads, -1)
    return jnp.stack([made[head, :, head] for head in range(heads)])
