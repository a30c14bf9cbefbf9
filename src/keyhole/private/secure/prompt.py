"""Causal attention over a prompt, and what its end evicts.

Legend: Hkv KV heads, G query heads of each, N prompt tokens, D head size, R tokens picked of M that compete.
"""

from __future__ import annotations

# pyright: reportMissingImports=false
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from keyhole.private.secure.packing import product
from keyhole.private.secure.ranking import as_numbers, one_hot, places
from keyhole.private.secure.softmax import HIDDEN, inverse_sums, normalised, powers_of
from keyhole.private.settings import Settings
from keyhole.private.sizes import Eviction

_ROWS, _BLOCKS = 32, 8  # queries at a time, so that few of the tokens after them are computed


class Prompted(NamedTuple):
    """What attention over a prompt gave.

    Attributes:
        out: `[Hkv, G, N, D]`.
        importance: `[Hkv, N]`, attention of the newest queries on each token, summed over a group; None
            unasked.
    """

    out: Array
    importance: Array | None


def attend_prompt(query: Array, keys: Array, values: Array, newest: int) -> Prompted:
    """Attention of `query [Hkv, G, N, D]` over `keys, values [Hkv, N, D]`; the `newest` queries say what
    matters."""
    heads, group, count, _ = query.shape
    outs, sums = [], jnp.zeros(keys.shape[:2])
    rows = max(_ROWS, -(-count // _BLOCKS))
    for begin in range(0, count, rows):
        end = min(begin + rows, count)
        asked = query[:, :, begin:end].reshape(heads, group * (end - begin), -1)
        scaled = product(asked, jnp.swapaxes(keys[:, :end], 1, 2)).reshape(heads, group, -1, end)
        later = np.arange(end) > np.arange(begin, end)[:, None]
        powers = powers_of(scaled - np.where(later, HIDDEN, 0.0).astype(np.float32))
        flat = powers.reshape(heads, -1, end)
        outs.append(normalised(product(flat, values[:, :end]), flat).reshape(heads, group, end - begin, -1))
        first = max(count - newest, begin)
        if first < end:
            shown = powers[:, :, first - begin :].reshape(heads, -1, end)
            paid = product(jnp.swapaxes(inverse_sums(shown), 1, 2), shown)[:, 0]
            sums = sums + jnp.pad(paid, ((0, 0), (0, count - end)))
    return Prompted(jnp.concatenate(outs, axis=2), sums if newest else None)


def keep_marks(importance: Array, sizes: Eviction, settings: Settings) -> Array:
    """Which of the competing tokens are kept, as one-hot rows in order of position: int32 `[1 or Hkv, R,
    M]`."""
    if not settings.per_head:
        importance = importance.sum(0, keepdims=True)
    if settings.kernel > 1:
        importance = _pooled(importance, settings.kernel, settings.window)
    begin = settings.sinks
    competing = importance[:, begin : begin + sizes.competing]
    kept = as_numbers(places(competing) < sizes.picked)
    # A token's row is the number of kept ones before it; behind all rows where it goes.
    before = kept @ np.triu(np.ones((sizes.competing, sizes.competing), np.int32))
    return one_hot(kept * (before - 1 - sizes.competing) + sizes.competing, sizes.picked)


def kept_rows(rows: Array, marks: Array, settings: Settings) -> Array:
    """Sinks, kept tokens and window of `rows [Hkv, N, X]`, keys and values side by side."""
    begin, competing = settings.sinks, marks.shape[-1]
    middle = rows[:, begin : begin + competing]
    factors = marks.astype(jnp.float32)
    if len(marks) == 1:
        heads, count, width = middle.shape
        flat = jnp.moveaxis(middle, 0, 1).reshape(count, heads * width)
        copied = jnp.moveaxis((factors[0] @ flat).reshape(-1, heads, width), 1, 0)
    else:
        copied = product(factors, middle)
    return jnp.concatenate([rows[:, :begin], copied, rows[:, begin + competing :]], axis=1)


def _pooled(importance: Array, kernel: int, window: int) -> Array:
    """The largest of `kernel` neighbours, without what the window gets, in a logarithmic number of steps."""
    count = importance.shape[1]
    shown = importance[:, : count - window]
    side = kernel // 2
    padded = jnp.pad(shown, ((0, 0), (side, window + side)))  # attention is never negative
    width = 1
    while width < kernel:
        further = min(width, kernel - width)
        padded = jnp.maximum(padded[:, :-further], padded[:, further:])
        width += further
    return padded
