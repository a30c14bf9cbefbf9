"""Brute-force answers for A2ATS, from the paper's formulae, in float64 numpy loops.

Legend as in `tests.oracles`; b is the constant relative position, L the metric, C codewords.
"""

import numpy as np


def rotated(vector, position, base=10_000.0):
    """R_position of one vector: channels i and i + D / 2 turned by position * base ** (-2 i / D)."""
    half = len(vector) // 2
    out = np.empty_like(vector)
    for i in range(half):
        angle = position * base ** (-i / half)
        out[i] = vector[i] * np.cos(angle) - vector[i + half] * np.sin(angle)
        out[i + half] = vector[i + half] * np.cos(angle) + vector[i] * np.sin(angle)
    return out


def unrotated_keys(keys, first):
    """keys [H, N, D] as cached, `first` slots of padding -> keys before RoPE."""
    return np.stack([[rotated(key, first - slot) for slot, key in enumerate(head)] for head in keys])


def codes(keys, codewords, metric):
    """keys before RoPE [H, N, D], codewords c [H, C, D], L [H, D, D] -> [H, N]: least (k - c) H (k - c)'."""
    found = np.empty(keys.shape[:2], dtype=int)
    for h in range(len(keys)):
        weight = metric[h] @ metric[h].T
        for n in range(keys.shape[1]):
            errors = [(keys[h, n] - c) @ weight @ (keys[h, n] - c) for c in codewords[h]]
            found[h, n] = int(np.argmin(errors))
    return found


def windowed_logits(query, length, first, codewords, coded, *, distance, scale):
    """query [Q, D] as computed, of the newest of `length` slots -> [Q, N]: scale * q R_b c'."""
    group = len(query) // len(codewords)
    out = np.empty((len(query), coded.shape[1]))
    for q in range(len(query)):
        bare = rotated(query[q], -(length - 1 - first))
        moved = rotated(bare, distance)
        for n in range(coded.shape[1]):
            out[q, n] = scale * moved @ codewords[q // group, coded[q // group, n]]
    return out
