"""Places by comparing all pairs at once: fixed cost and rounds, and nothing is opened.

Legend: C things to rank, K best of them, P pairs, N blocks of B things.
"""

from __future__ import annotations

# pyright: reportMissingImports=false
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

_BLOCK = 64
_WORST = -(2.0**24)  # below any score


def places(scores: Array) -> Array:
    """The place of each of `scores [..., C]`, int32: 0 for the greatest; of equal ones the lower comes first.

    C (C - 1) / 2 comparisons, at once; above `_BLOCK` things in two batches, and with what fills the last
    block.
    """
    count = scores.shape[-1]
    if count <= _BLOCK:
        return _pairwise(scores)
    filling = [(0, 0)] * (scores.ndim - 1) + [(0, -count % _BLOCK)]
    blocks = jnp.pad(scores, filling, constant_values=_WORST).reshape(*scores.shape[:-1], -1, _BLOCK)
    inside = _pairwise(blocks) + _between(blocks)
    return inside.reshape(*scores.shape[:-1], -1)[..., :count]


def _pairwise(scores: Array) -> Array:
    count = scores.shape[-1]
    if count == 1:
        return jnp.zeros(scores.shape, jnp.int32)
    pairs = [(first, first + apart) for apart in range(1, count) for first in range(count - apart)]
    later = jnp.concatenate([scores[..., apart:] for apart in range(1, count)], axis=-1)
    earlier = jnp.concatenate([scores[..., : count - apart] for apart in range(1, count)], axis=-1)
    beaten = (later > earlier).astype(jnp.int32)
    # Adding up by a public matrix is free. Where a pair's first is not beaten, its second has one
    # more before it.
    moves = np.zeros((len(pairs), count), np.int32)
    moves[np.arange(len(pairs)), [first for first, _ in pairs]] = 1
    moves[np.arange(len(pairs)), [second for _, second in pairs]] = -1
    return beaten @ moves + np.arange(count, dtype=np.int32)


def _between(blocks: Array) -> Array:
    """How many things of other blocks come before each of `blocks [..., N, B]`."""
    count, size = blocks.shape[-2:]
    pairs = [(first, second) for first in range(count) for second in range(first + 1, count)]
    later = jnp.stack([blocks[..., second, None, :] for _, second in pairs], axis=-3)
    earlier = jnp.stack([blocks[..., first, :, None] for first, _ in pairs], axis=-3)
    beaten = (later > earlier).astype(jnp.int32)  # [..., P, B of the first, B of the second]
    firsts, seconds = np.zeros((2, count, len(pairs)), np.int32)
    for place, (first, second) in enumerate(pairs):
        firsts[first, place] = seconds[second, place] = 1
    before_first = jnp.einsum("np,...pb->...nb", firsts, beaten.sum(-1))
    before_second = jnp.einsum("np,...pb->...nb", seconds, size - beaten.sum(-2))
    return before_first + before_second


def one_hot(ranks: Array, count: int) -> Array:
    """Int32 `[..., K, C]`: row r marks the thing whose place is r.

    As the difference of two comparisons: the bit of one becomes a number for a tenth of what that of an
    equality takes in ABY3.
    """
    above = np.arange(1, count + 1, dtype=np.int32)[:, None]
    before = as_numbers(ranks[..., None, :] < above)
    return jnp.concatenate([before[..., :1, :], before[..., 1:, :] - before[..., :-1, :]], axis=-2)


def as_numbers(bits: Array) -> Array:
    """Int32 `[..., C]` of 0 and 1, ready for products.

    SPU holds results of comparisons as bits, and would make numbers of them again for each use. A product
    with a public matrix makes them once, and sends nothing itself.
    """
    return bits.astype(jnp.int32) @ np.eye(bits.shape[-1], dtype=np.int32)


def best(scores: Array, count: int) -> Array:
    """`one_hot` of the `count` greatest scores, in order."""
    return one_hot(places(scores), count)


def quick_best(scores: Array, count: int) -> Array:
    """The same by SPU's quick-select, which opens comparisons of shuffled scores.

    Few bytes for large C; the number of messages depends on the shuffle. The winners come unsorted, so
    they are
    ranked among each other.
    """
    rows = scores.reshape(-1, scores.shape[-1])
    marks = []
    for row in rows:
        values, indices = lax.top_k(row, count)
        hot = (indices[:, None] == np.arange(row.shape[-1], dtype=np.int32)).astype(jnp.int32)
        marks.append(best(values, count) @ hot)
    return jnp.stack(marks).reshape(*scores.shape[:-1], count, scores.shape[-1])
