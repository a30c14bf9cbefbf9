"""Brute-force answers for MPCache, from the specification's formulae in float64 numpy loops.

As in `tests.oracles`: nothing here imports keyhole. One prompt without padding.
"""

import math

import numpy as np


def kept(weights, heads, *, sinks, window, count, per_head, kernel=1):
    """Positions each KV head keeps: `weights [Q, N, N]` are causal, so many are kept."""
    queries, tokens, _ = weights.shape
    if tokens <= count:
        return [list(range(tokens))] * heads
    looking = math.ceil(tokens / 5) if tokens <= 24_000 else math.ceil(tokens / 10)
    importance, group = weights[:, tokens - looking :].sum(1), queries // heads
    found = []
    for head in range(heads):
        mine = importance[head * group : (head + 1) * group] if per_head else importance
        gets, around = mine.sum(0), range(-(kernel // 2), kernel // 2 + 1)
        if kernel > 1:
            lifting = [*gets[: max(tokens - window, 0)], *[0] * min(window, tokens)]
            gets = [max(lifting[j + by] for by in around if 0 <= j + by < tokens) for j in range(tokens)]
        middle = sorted(range(sinks, tokens - window), key=lambda j: (-gets[j], j))
        best = sorted(middle[: max(count - sinks - window, 0)])
        found.append([*range(sinks), *best, *range(tokens - window, tokens)])
    return found


def clusters(first, last, size):
    """The competing slots of each cluster that has any, by number."""
    found = {}
    for slot in range(first, last):
        found.setdefault(slot // size, []).append(slot)
    return found


def points(keys, numbers, size, first, alpha):
    """keys [N, D] -> alpha of the greatest and 1 - alpha of the least in each channel, by cluster number."""
    found = {}
    for number in numbers:
        inside = [keys[slot] for slot in range(max(number * size, first), (number + 1) * size)]
        ends = [(max(channel), min(channel)) for channel in zip(*inside, strict=True)]
        found[number] = np.array([alpha * most + (1 - alpha) * least for most, least in ends])
    return found


def ordered(numbers, asked, keys, size, *, first, alpha):
    """Clusters: the first of the text, those not whole, then by the sum of the queries' scores."""
    whole = len(keys) // size * size
    known = [number for number in numbers if number and (number + 1) * size <= whole]
    at = points(keys, known, size, first, alpha)
    worth = {number: sum(q @ at[number] for q in asked) if number in at else math.inf for number in numbers}
    return sorted(numbers, key=lambda number: (-worth[number], number))


def read(query, keys, *, first, last, fine, coarse, share, alpha, budget):
    """query [Q, D], keys [H, N, D] -> for each KV head the slots read and the coarse survivors."""
    group, found = len(query) // len(keys), []
    above, below = clusters(first, last, coarse), clusters(first, last, fine)
    examined = max(math.ceil(share * len(above)), math.ceil(budget / coarse) + 2)
    # What fills no coarse cluster yet is in none, of either size.
    whole = keys.shape[1] // coarse * coarse
    for head, mine in enumerate(keys[:, :whole]):
        asked = query[head * group : (head + 1) * group]
        survivors = ordered(list(above), asked, mine, coarse, first=first, alpha=alpha)[:examined]
        children = [number for number in below if number * fine // coarse in survivors]
        slots = []
        for number in ordered(children, asked, mine, fine, first=first, alpha=alpha):
            slots += below[number][: budget - len(slots)]
        found.append((sorted(slots), survivors))
    return found
