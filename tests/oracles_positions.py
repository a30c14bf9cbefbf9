"""Rotations, and positions counted from 0 (TokenSelect), from the papers' formulae in float64 numpy loops.

As in `tests.oracles`: nothing here imports keyhole. One batch row; legend as there.
"""

import math

import numpy as np

from tests import oracles


def rotated(vector, position, base=10_000.0):
    """vector [D] moved on by `position`: channel i and i + D / 2 turn by position * base^(-2i / D)."""
    half, out = len(vector) // 2, np.array(vector, dtype=np.float64)
    for i in range(half):
        angle = position * base ** (-i / half)
        left, right = vector[i], vector[i + half]
        out[i] = left * math.cos(angle) - right * math.sin(angle)
        out[i + half] = right * math.cos(angle) + left * math.sin(angle)
    return out


def unrotated_keys(keys, start):
    """keys [H, N, D] cached after rotation -> as they were before; slot `start` is at position 0."""
    return np.array([[rotated(key, start - slot) for slot, key in enumerate(head)] for head in keys])


def renumbered_attention(query, slot, keys, values, listed, start, *, scale):
    """Attention of the query of `slot`, [Q, D], over `listed`, for each KV head the slots that are kept.

    What lies in a list gets the positions 0, 1, 2, ...; the query that of its own slot there; it sees what
    does not lie behind it.
    """
    group, bare = len(query) // len(keys), unrotated_keys(keys, start)
    moved, turned = np.zeros_like(bare), np.zeros_like(query)
    for head, slots in enumerate(listed):
        for position, other in enumerate(slots):
            moved[head, other] = rotated(bare[head, other], position)
        for q in range(head * group, (head + 1) * group):
            turned[q] = rotated(rotated(query[q], start - slot), slots.index(slot))
    seen = [[other for other in slots if other <= slot] for slots in listed]
    return oracles.attention(turned, moved, values, seen, scale=scale)[0]
