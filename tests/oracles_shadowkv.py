"""Brute-force answers for ShadowKV, from the paper's algorithms, in float64 numpy loops.

Legend as in `tests.oracles`; c slots of a chunk.
"""

import numpy as np


def chunks(first, last, size):
    """The competing slots of each chunk that has some, by the chunk's number."""
    found = {}
    for slot in range(first, last):
        found.setdefault(slot // size, []).append(slot)
    return found


def outliers(keys, first, last, size, count):
    """keys [N, D] of one head -> the chunks whose worst cosine to their mean is least, worst first."""
    worst = {}
    for number, slots in chunks(first, last, size).items():
        mean = keys[slots].mean(0)
        worst[number] = min(key @ mean / np.linalg.norm(key) / np.linalg.norm(mean) for key in keys[slots])
    return sorted(worst, key=lambda number: (worst[number], number))[:count]


def landmark_scores(query, keys, first, last, size, apart, scale):
    """query [G, D] of one group, keys [N, D] -> score of each chunk that is not `apart`.

    The greatest over the group of the softmax over landmarks: means of what of a chunk competes, or will.
    """
    numbers = [number for number in chunks(first, last, size) if number not in apart]
    if not numbers:
        return {}
    means = [
        keys[max(number * size, first) : min((number + 1) * size, len(keys))].mean(0) for number in numbers
    ]
    logits = scale * np.array(query) @ np.array(means).T
    weights = np.exp(logits - logits.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    return dict(zip(numbers, weights.max(0), strict=True))


def low_rank(keys, rank):
    """keys [N, M] -> the best approximation of rank `rank` about their mean, by singular values."""
    mean = keys.mean(0)
    left, values, right = np.linalg.svd(keys - mean, full_matrices=False)
    return mean + left[:, :rank] * values[:rank] @ right[:rank]
