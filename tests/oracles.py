"""Brute-force answers to compare the library with, written from the papers' formulae in float64 numpy.

Nothing here imports keyhole and nothing is clever: a mistake shared with the library would hide it.

Legend, for one batch row: Q query heads, H KV heads, G = Q // H, N tokens, D head size, M sub-spaces,
C centroids of each, S = D // M. Query head q reads KV head q // G.
"""

import math

import numpy as np


def array(tensor):
    """Any tensor as a float64 or int64 array."""
    if tensor.is_floating_point():
        return tensor.detach().double().numpy()
    return tensor.detach().long().numpy()


def exact_logits(query, keys, *, scale, softcap=None):
    """query [Q, D], keys [H, N, D] -> [Q, N]: scaled (and soft-capped) inner products."""
    group = len(query) // len(keys)
    logits = np.empty((len(query), keys.shape[1]))
    for q in range(len(query)):
        logits[q] = _capped(scale * (keys[q // group] @ query[q]), softcap)
    return logits


def pq_distances(keys, centroids):
    """keys [H, N, D], centroids [H, M, C, S] -> [H, N, M, C]: squared distances of parts to centroids."""
    heads, subspaces, _, width = centroids.shape
    parts = keys.reshape(heads, keys.shape[1], subspaces, 1, width)
    return ((parts - centroids[:, None]) ** 2).sum(-1)


def pq_codes(keys, centroids):
    """keys [H, N, D], centroids [H, M, C, S] -> [H, N, M]: the nearest centroid, of equals the lower."""
    return pq_distances(keys, centroids).argmin(-1)


def pq_code_error(codes, keys, centroids):
    """How much farther than the nearest a code's centroid is, at most, over one plus the squared norm."""
    distances = pq_distances(keys, centroids)
    picked = np.take_along_axis(distances, codes[..., None], -1)[..., 0]
    return ((picked - distances.min(-1)) / (1 + (keys**2).sum(-1, keepdims=True))).max()


def pq_tables(query, centroids):
    """query [Q, D], centroids [H, M, C, S] -> [Q, M, C]: inner products of sub-queries and centroids."""
    heads, subspaces, count, width = centroids.shape
    group = len(query) // heads
    tables = np.zeros((len(query), subspaces, count))
    for q in range(len(query)):
        for m in range(subspaces):
            for c in range(count):
                tables[q, m, c] = np.dot(query[q, m * width : (m + 1) * width], centroids[q // group, m, c])
    return tables


def pq_logits(query, centroids, codes, *, scale, softcap=None):
    """query [Q, D], centroids [H, M, C, S], codes [H, N, M] -> [Q, N]: sums of table entries, as logits."""
    tables = pq_tables(query, centroids)
    group = len(query) // len(centroids)
    logits = np.zeros((len(query), codes.shape[1]))
    for q in range(len(query)):
        for n in range(codes.shape[1]):
            total = sum(tables[q, m, codes[q // group, n, m]] for m in range(codes.shape[2]))
            logits[q, n] = scale * total
    return _capped(logits, softcap)


def group_shares(ranked, always, heads):
    """Each ranked token's share of attention, a mean over the query heads of its group.

    ranked [Q, N]: logits of the tokens that compete. always [Q, A]: logits of those that are read anyway;
    they belong to the softmax denominator. Returns shares [H, N] and the share of the always-read, [H].
    """
    group = len(ranked) // heads
    shares, fixed = np.zeros((heads, ranked.shape[1])), np.zeros(heads)
    for q in range(len(ranked)):
        top = max([*ranked[q], *always[q]])
        total = np.exp(ranked[q] - top).sum() + np.exp(always[q] - top).sum()
        shares[q // group] += np.exp(ranked[q] - top) / total / group
        fixed[q // group] += np.exp(always[q] - top).sum() / total / group
    return shares, fixed


def top_k(scores, count):
    """Positions of the `count` greatest, greatest first; of equal ones the lower position first."""
    return sorted(range(len(scores)), key=lambda position: (-scores[position], position))[:count]


def fewest_for_mass(shares, fixed, target, floor, cap):
    """Positions of the fewest tokens, greatest share first, with which `fixed` plus theirs reaches `target`.

    No fewer than `floor`, no more than `cap`, no more than there are; cap wins over floor.
    """
    chosen, mass = [], fixed
    for position in top_k(shares, len(shares)):
        if len(chosen) >= cap or (mass >= target and len(chosen) >= floor):
            break
        chosen.append(position)
        mass += shares[position]
    return chosen


def attention(query, keys, values, read, *, scale, softcap=None, sink_logits=None):
    """Exact attention of one query over the tokens of `read`, a list of positions for each KV head.

    query [Q, D], keys [H, N, D], values [H, N, E] -> out [Q, E], log-sum-exp [Q]. A position given twice
    counts twice. `sink_logits` [Q] take mass and give nothing. Reading nothing gives 0 and -inf.
    """
    group = len(query) // len(keys)
    out, lse = np.zeros((len(query), values.shape[-1])), np.full(len(query), -math.inf)
    for q in range(len(query)):
        slots = list(read[q // group])
        logits = _capped(scale * (keys[q // group, slots] @ query[q]), softcap)
        extra = [] if sink_logits is None else [sink_logits[q]]
        if not slots and not extra:
            continue
        top = max([*logits, *extra])
        total = np.exp(logits - top).sum() + sum(math.exp(logit - top) for logit in extra)
        out[q] = np.exp(logits - top) @ values[q // group, slots] / total
        lse[q] = top + math.log(total)
    return out, lse


def causal_attention(query, keys, values, *, first=0, **logits):
    """Exact attention of queries [Q, L, D], the last of which is the newest token; returns [Q, L, E].

    Slots before `first` are padding; a query there sees nothing.
    """
    length, count = query.shape[1], keys.shape[1]
    out = np.zeros((len(query), length, values.shape[-1]))
    for i in range(length):
        read = [range(first, count - length + i + 1)] * len(keys)
        out[:, i], _ = attention(query[:, i], keys, values, read, **logits)
    return out


def regions(first, length, sinks, window):
    """The three-way partition of the slots [first, length): sinks, what competes, window.

    Every token is in exactly one of the three lists; the oldest are sinks, the newest are the window.
    """
    slots = list(range(first, length))
    rest = slots[sinks:]
    border = max(len(rest) - window, 0)
    return slots[:sinks], rest[:border], rest[border:]


def _capped(logits, softcap):
    return logits if softcap is None else softcap * np.tanh(logits / softcap)
