"""SALE from the formulae of its paper, in plain loops over numpy arrays; nothing here imports keyhole."""

import math

import numpy as np

ROWS, BLOCK = 64, 32


def tiles(queries, tokens, sinks, window):
    """Of each tile of 64 queries: its first and last position, and the candidates [begin, end)."""
    begin = BLOCK * math.ceil(sinks / BLOCK)
    for first in range(tokens - queries, tokens, ROWS):
        last = min(first + ROWS, tokens) - 1
        end = BLOCK * ((first - window) // BLOCK) if first > window else 0
        yield first, last, begin, max(begin, end)


def logit(query, key, scale):
    return float(np.dot(query.astype(np.float64), key.astype(np.float64))) * scale


def true_shares(queries, keys, scale):
    """`[Q, N]`: the share of attention of each key, 0 for later ones."""
    out = np.zeros((len(queries), len(keys)))
    for row, query in enumerate(queries):
        own = len(keys) - len(queries) + row
        logits = [logit(query, keys[j], scale) for j in range(own + 1)]
        top = max(logits)
        weights = [math.exp(x - top) for x in logits]
        out[row, : own + 1] = np.array(weights) / sum(weights)
    return out


def relative_scores(queries, keys, scale, *, sinks, window, pooled):
    """`[Q, N]`: exp(logit) over the sum of exp(logit) of what is always read, by exact logits.

    With `pooled`, over that sum and, for each block of 32 candidates, 32 times exp(logit of the mean key).
    """
    out = np.zeros((len(queries), len(keys)))
    for first, last, begin, end in tiles(len(queries), len(keys), sinks, window):
        for position in range(first, last + 1):
            query = queries[position - len(keys) + len(queries)]
            always = [j for j in range(position + 1) if not begin <= j < end]
            total = sum(math.exp(logit(query, keys[j], scale)) for j in always)
            for block in range(begin, end, BLOCK) if pooled else ():
                mean = keys[block : block + BLOCK].astype(np.float64).mean(0)
                total += BLOCK * math.exp(logit(query, mean, scale))
            for j in range(position + 1):
                out[position - len(keys) + len(queries), j] = math.exp(logit(query, keys[j], scale)) / total
    return out


def kept(queries, keys, tau, scale, *, sinks, window, width, pooled):
    """For each tile, which keys it reads: those always read, and whole runs of which one entry passes."""
    scores = relative_scores(queries, keys, scale, sinks=sinks, window=window, pooled=pooled)
    found = []
    for first, last, begin, end in tiles(len(queries), len(keys), sinks, window):
        reads = [j <= last and not begin <= j < end for j in range(len(keys))]
        rows = range(first - len(keys) + len(queries), last + 1 - len(keys) + len(queries))
        for run in range(begin, end, width):
            if tau == 0 or any(scores[row, j] > tau for row in rows for j in range(run, run + width)):
                reads[run : run + width] = [True] * width
        found.append(reads)
    return found


def attention(queries, keys, values, reads, scale):
    """`[Q, Dv]`: softmax over those keys of a tile's list that are not later than the query."""
    out = np.zeros((len(queries), values.shape[1]))
    for row, query in enumerate(queries):
        own = len(keys) - len(queries) + row
        slots = [j for j in range(own + 1) if reads[row // ROWS][j]]
        logits = [logit(query, keys[j], scale) for j in slots]
        top = max(logits)
        weights = [math.exp(x - top) for x in logits]
        for weight, slot in zip(weights, slots, strict=True):
            out[row] += weight / sum(weights) * values[slot]
    return out
