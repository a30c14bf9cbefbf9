"""Brute-force answers for WindowKV, from the paper's formulae in float64 numpy loops.

As in `tests.oracles`: nothing here imports keyhole. One prompt without padding.
"""

import numpy as np


def attention(query, keys, *, scale):
    """query [Q, N, D], keys [H, N, D] -> [Q, N, N]: causal softmax weights, row i those of query i."""
    heads, tokens, _ = query.shape
    group, weights = heads // len(keys), np.zeros((heads, tokens, tokens))
    for q in range(heads):
        for i in range(tokens):
            logits = [scale * float(query[q, i] @ keys[q // group, j]) for j in range(i + 1)]
            raised = np.exp(np.array(logits) - max(logits))
            weights[q, i, : i + 1] = raised / raised.sum()
    return weights


def window_worth(scores, p):
    """The mean of the p largest scores of a window, of all where there are fewer."""
    best = sorted(scores, reverse=True)[:p]
    return sum(best) / len(best)


def windows(first, last, omega):
    """The slots [first, last) cut in windows, the last as long as it is."""
    return [list(range(begin, min(begin + omega, last))) for begin in range(first, last, omega)]


def kept(weights, heads, *, alpha, sinks, omega, p, budget, per_head):
    """Positions each KV head keeps of a prompt whose attention is `weights [Q, N, N]`."""
    queries, tokens, _ = weights.shape
    if tokens <= budget:
        return [list(range(tokens))] * heads
    summed = weights[:, tokens - alpha :].sum(1)
    cut = windows(sinks, tokens - alpha, omega)
    worth = np.array([[window_worth(summed[q, slots], p) for slots in cut] for q in range(queries)])
    found, group = [], queries // heads
    for head in range(heads):
        mine = worth[head * group : (head + 1) * group] if per_head else worth
        order = sorted(range(len(cut)), key=lambda k: (-mine.mean(0)[k], k))
        room, read = max(budget - sinks - alpha, 0), []
        for k in order:
            read += cut[k][: room - len(read)]
        found.append([*range(sinks), *sorted(read), *range(tokens - alpha, tokens)])
    return found


def budgets(cap, gamma, layers):
    """Tokens of each layer in the released code, where gamma divides the layers and there are groups."""
    groups = layers // gamma
    last = cap * gamma // 14
    first = 2 * cap - last
    step = (first - last) // (groups - 1)
    each = [first - group * step for group in range(groups - 1)] + [last]
    return [each[layer // gamma] for layer in range(layers)]
