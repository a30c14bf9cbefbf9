"""Compaction by brute force: a `tests.layers.Layer` of 2 sinks, a window of 6 and 2 query heads per KV head.

Written from the method's definition in float64 numpy; nothing here imports keyhole.
"""

import math

import numpy as np

from tests.oracles import array


def rotated(vector, by, base=10_000.0):
    """RoPE from its definition, channel i paired with i + D / 2."""
    half, out = len(vector) // 2, vector.copy()
    for i in range(half):
        angle = by * base ** (-i / half)
        a, b = vector[i], vector[i + half]
        out[i], out[i + half] = (
            a * math.cos(angle) - b * math.sin(angle),
            a * math.sin(angle) + b * math.cos(angle),
        )
    return out


def asked(layer, row, head, queries, future):
    """The newest queries of a head's group that are no padding, at the positions to come, and their heads."""
    found = []
    for h in (2 * head, 2 * head + 1):
        for newest in range(min(queries, layer.query.shape[2])):
            place = layer.length - 1 - newest
            if place >= layer.starts[row]:
                ahead = int(newest * (math.sqrt(5) - 1) / 2 % 1 * future)
                query = array(layer.query[row, h, layer.query.shape[2] - 1 - newest])
                found.append((rotated(query, layer.length + ahead - place), h))
    return found


def shares(query, head, keys, logits):
    """Softmax weights of one query, of which a sink logit takes its part."""
    products = logits.scale * keys @ query
    if logits.softcap is not None:
        products = logits.softcap * np.tanh(products / logits.softcap)
    weights = np.exp(products)
    sink = 0.0 if logits.sink_logits is None else math.exp(logits.sink_logits[head])
    return weights / (weights.sum() + sink)


def expected(layer, row, head, first, summaries, *, queries, future, ridge):
    """Positions and values: the tokens `first`, the sinks, the window, and the best of the rest."""
    start, length = layer.starts[row], layer.length
    keys, values = (array(held[row, head]) for held in (layer.keys, layer.values))
    there = list(range(start, length))
    observed = asked(layer, row, head, queries, future)
    weights = np.array([shares(query, h, keys[there], layer.logits) for query, h in observed])
    always = [*range(start, start + 2), *range(length - 6, length)]
    rest = [p for p in there if p not in first and p not in always]
    best = sorted(rest, key=lambda p: (-weights[:, p - start].sum(), p))[:summaries]
    stay = sorted([*always, *first, *best])
    left = np.array([shares(query, h, keys[stay], layer.logits) for query, h in observed])
    missing = weights @ values[there] - left @ values[stay]
    free = [stay.index(p) for p in sorted([*first, *best])]
    part = left[:, free]
    weight = ridge * np.trace(part.T @ part) / len(free)
    change = np.linalg.solve(part.T @ part + weight * np.eye(len(free)), part.T @ missing)
    fitted = values[stay].copy()
    fitted[free] += change
    return stay, fitted


def snapped(layer, row, head, count):
    """The tokens SnapKV keeps between sinks and window."""
    start, length = layer.starts[row], layer.length
    keys, total = array(layer.keys[row, head]), np.zeros(length)
    for h in (2 * head, 2 * head + 1):
        for at in range(length - 6, length):
            query = array(layer.query[row, h, layer.query.shape[2] - length + at])
            total[start : at + 1] += shares(query, h, keys[start : at + 1], layer.logits)
    return sorted(range(start + 2, length - 6), key=lambda p: (-total[p], p))[:count]
