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


def kept(queries, keys, tau, scale, *, sinks, window, width, pooled, rows=ROWS):
    """The keys that each `rows` queries of a tile read: those always read, and runs of which one passes."""
    scores = relative_scores(queries, keys, scale, sinks=sinks, window=window, pooled=pooled)
    found = []
    for first, last, begin, end in tiles(len(queries), len(keys), sinks, window):
        for start in range(first, last + 1, rows):
            reads = [j <= last and not begin <= j < end for j in range(len(keys))]
            stop = min(start + rows, last + 1)
            own = range(start - len(keys) + len(queries), stop - len(keys) + len(queries))
            for run in range(begin, end, width):
                if tau == 0 or any(scores[row, j] > tau for row in own for j in range(run, run + width)):
                    reads[run : run + width] = [True] * width
            found.append(reads)
    return found


def attention(queries, keys, values, reads, scale, *, rows=ROWS, means=False):
    """`[Q, Dv]`: softmax over those keys of a group's list that are not later than the query.

    With `means`, over the mean of what is left out of each block, too, as often as it has keys.
    """
    out = np.zeros((len(queries), values.shape[1]))
    for row, query in enumerate(queries):
        own = len(keys) - len(queries) + row
        group = reads[row // ROWS * (ROWS // rows) + row % ROWS // rows]
        rest = [
            [j for j in range(at, min(at + BLOCK, own + 1)) if not group[j]] for at in range(0, own, BLOCK)
        ]
        entries = [[j] for j in range(own + 1) if group[j]] + [block for block in rest if block and means]
        logits = [logit(query, keys[e].astype(np.float64).mean(0), scale) + math.log(len(e)) for e in entries]
        top = max(logits)
        weights = [math.exp(x - top) for x in logits]
        for weight, entry in zip(weights, entries, strict=True):
            out[row] += weight / sum(weights) * values[entry].mean(0)
    return out
