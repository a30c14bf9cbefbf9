"""Which clusters a decode step reads, as one-hot rows of secret numbers.

Legend: Hkv KV heads, G query heads of each, N slots, D head size, C competing fine clusters, K clusters read.
"""

from __future__ import annotations

# pyright: reportMissingImports=false
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from keyhole.private.secure.packing import product
from keyhole.private.secure.ranking import best, quick_best
from keyhole.private.secure.softmax import HIDDEN
from keyhole.private.settings import Settings
from keyhole.private.sizes import Reading

_WORST = 2.0**20  # below any score


class Chosen(NamedTuple):
    """Clusters that a step reads.

    Attributes:
        hot: int32 `[Hkv, K, C]`, one mark in each row, best cluster first.
        hidden: `[Hkv, K, fine]` or public, what is added to logits: 0, or far below 0 for tokens that are
            beyond the
            budget or in the window.
    """

    hot: Array
    hidden: Array | np.ndarray


def points(keys: Array, size: int, alpha: float) -> Array:
    """A vector for each whole cluster of `keys [Hkv, N, D]`: `[Hkv, N // size, D]`."""
    heads, slots, width = keys.shape
    whole = keys[:, : slots // size * size].reshape(heads, slots // size, size, width)
    return alpha * jnp.max(whole, axis=2) + (1 - alpha) * jnp.min(whole, axis=2)


def choose(query: Array, fine: Array, coarse: Array | None, reading: Reading, settings: Settings) -> Chosen:
    """Rank clusters by the group's summed query.

    Args:
        query: `[Hkv, G, D]`.
        fine: points of all fine clusters from slot 0 on, `[Hkv, C', D]`.
        coarse: the same of coarse ones, where some of them survive.
    """
    asked = query.sum(1)
    pick = best if settings.ranking == "pairs" else quick_best
    begin, end = reading.first // settings.fine, -(-reading.stop // settings.fine)
    fine = fine[:, begin:end]
    if not reading.survivors:
        return _chosen(pick(_scores(asked, fine), reading.ranked), reading, settings.fine)
    assert coarse is not None
    above = coarse[:, reading.first // settings.coarse : -(-reading.stop // settings.coarse)]
    survive = pick(_scores(asked, above), reading.survivors)
    children = _children(fine, settings.coarse // settings.fine)
    hot = _second(asked, children, survive, reading, pick)[..., : end - begin]
    return _chosen(hot, reading, settings.fine)


def _scores(asked: Array, points_: Array) -> Array:
    return product(asked[:, None], jnp.swapaxes(points_, 1, 2))[:, 0]


def _children(fine: Array, each: int) -> tuple[Array, int]:
    """Fine points by coarse cluster, `[Hkv, C', each, D]`, the last one filled up, and how many are
    filling."""
    filling = -fine.shape[1] % each
    filled = jnp.concatenate([fine, fine[:, :filling]], axis=1) if filling else fine
    return filled.reshape(fine.shape[0], -1, each, fine.shape[2]), filling


def _second(asked: Array, children: tuple[Array, int], survive: Array, reading: Reading, pick) -> Array:
    """Marks of fine clusters `[Hkv, K, C]`, ranked within the coarse ones that survive `[Hkv, E, C']`."""
    below, filling = children
    heads, coarse, each, _ = below.shape
    scores = _scores(asked, below.reshape(heads, coarse * each, -1)).reshape(heads, coarse, each)
    kept = product(survive, scores)
    if filling:
        last = np.where(np.arange(each) >= each - filling, _WORST, 0.0).astype(np.float32)
        kept = kept - survive[..., -1:].astype(jnp.float32) * last
    hot = pick(kept.reshape(heads, -1), reading.ranked).reshape(heads, reading.ranked, -1, each)
    spread = jnp.moveaxis(hot, 2, 3).reshape(heads, reading.ranked * each, -1)
    placed = product(spread, survive).reshape(heads, reading.ranked, each, coarse)
    return jnp.moveaxis(placed, 3, 2).reshape(heads, reading.ranked, coarse * each)


def _chosen(hot: Array, reading: Reading, fine: int) -> Chosen:
    """With what is hidden: of the last cluster in order, what is beyond the budget; of the youngest, the
    window.

    Whether the youngest cluster, of which only `edge` tokens compete, was chosen moves where the budget
    ends. All
    cases are public; which of them holds is one mark.
    """
    places = np.arange(reading.ranked)[:, None] * fine
    offsets = np.arange(fine)[None]
    plain = _mask(offsets < reading.budget - places)
    if reading.edge == fine:
        return Chosen(hot, plain.astype(np.float32))
    short = fine - reading.edge
    after = _mask(offsets < reading.budget - places + short)
    itself = _mask((offsets < reading.budget - places) & (offsets < reading.edge))
    # In whole numbers, whose products with public ones send nothing.
    here = hot[..., -1][..., None]
    before = np.tril(np.ones((reading.ranked, reading.ranked), np.int32), -1)
    earlier = (hot[..., -1] @ before.T)[..., None]
    hidden = plain + (after - plain) * earlier + (itself - plain) * here
    return Chosen(hot, hidden.astype(jnp.float32))


def _mask(shown: np.ndarray) -> np.ndarray:
    return np.where(shown, 0, -int(HIDDEN)).astype(np.int32)
