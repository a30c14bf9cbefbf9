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


def ranges_of(window, distance, ranges):
    """The distances whose rotations are averaged for each range, and where each but the last ends."""
    if ranges == 1:
        return [[distance]], []
    edges = [round(window * (2 * distance / window) ** (at / ranges)) for at in range(ranges + 1)]
    return [list(range(edges[at], edges[at + 1])) for at in range(ranges)], edges[1:-1]


def windowed_logits(query, length, first, codewords, coded, *, distance, scale, window=3, ranges=1):
    """query [Q, D] as computed, of the newest of `length` slots -> [Q, N]: scale * mean of q R_b c'."""
    group = len(query) // len(codewords)
    out = np.empty((len(query), coded.shape[1]))
    distances, ends = ranges_of(window, distance, ranges)
    for q in range(len(query)):
        bare = rotated(query[q], -(length - 1 - first))
        moved = [np.mean([rotated(bare, b) for b in of_range], axis=0) for of_range in distances]
        for n in range(coded.shape[1]):
            number = sum(length - 1 - n >= end for end in ends)
            out[q, n] = scale * moved[number] @ codewords[q // group, coded[q // group, n]]
    return out
