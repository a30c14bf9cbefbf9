"""The rules of InfLLM-V2 and NOSA as they are written down, in numpy: one query, one KV head, loops."""

import numpy as np


def importance(weight, scale, values, bias=None):
    """`e [Hkv, N]` of `values [Hkv, N, Dv]`: a token's importance for each KV head, by the values of all."""
    heads, tokens, _ = values.shape
    out = np.zeros((heads, tokens))
    for j in range(tokens):
        joined = np.concatenate([values[g, j] for g in range(heads)])
        for g in range(heads):
            raised = weight[g] @ joined + (0.0 if bias is None else bias[g])
            out[g, j] = scale[g] * np.log1p(np.exp(raised))
    return out


def compressed(rows, stride):
    """The mean of each whole window of 2 * stride rows, a window every `stride` of them."""
    count = max((len(rows) - 2 * stride) // stride + 1, 0)
    return np.array([rows[stride * j : stride * j + 2 * stride].mean(0) for j in range(count)])


def window_attention(queries, keys, stride, scale):
    """What all heads of a group together give each window; `queries [G, D]`, `keys [N, D]`."""
    means = compressed(keys, stride)
    total = np.zeros(len(means))
    for query in queries:
        if len(means):
            logits = means @ query * scale
            weights = np.exp(logits - logits.max())
            total += weights / weights.sum()
    return total


def block_scores(windows, blocks, strides):
    """The greatest of the windows `strides * b - 1` to `strides * b + strides - 1`, of those there are."""
    scores = []
    for b in range(blocks):
        touching = [
            windows[j] for j in range(strides * b - 1, strides * b + strides) if 0 <= j < len(windows)
        ]
        scores.append(max(touching, default=-np.inf))
    return np.array(scores)


def best(scores, count):
    """Places of the `count` greatest, of equal ones the lower."""
    return sorted(range(len(scores)), key=lambda b: (-scores[b], b))[:count]


def forced_blocks(current, init, local):
    return {b for b in range(current + 1) if b < init or b >= current - local}


def infllm_v2_blocks(queries, keys, rule, scale):
    """Blocks that the newest of `keys [N, D]` reads, by its `queries [G, D]`."""
    current = (len(keys) - 1) // rule["block"]
    windows = window_attention(queries, keys, rule["stride"], scale)
    scores = block_scores(windows, current + 1, rule["block"] // rule["stride"])
    for b in forced_blocks(current, rule["init"], rule["local"]):
        scores[b] = np.inf
    return sorted(best(scores, rule["blocks"]))


def nosa_blocks(queries, keys, matter, rule, scale):
    """As `infllm_v2_blocks`: the blocks of the query, and those of greatest importance `matter [N]`."""
    current = (len(keys) - 1) // rule["block"]
    by_query = dict(rule, blocks=rule["init"] + rule["local"] + rule["recalled"])
    scores = block_scores(compressed(matter, rule["stride"]), current + 1, rule["block"] // rule["stride"])
    asked = infllm_v2_blocks(queries, keys, by_query, scale)
    for b in forced_blocks(current, rule["init"], rule["local"]) | set(asked):
        scores[b] = np.inf
    return sorted(best(scores, rule["blocks"]))


def biased_attention(queries, keys, values, bias, scale):
    """Attention `[G, Dv]` with weights `exp(q.k * scale + bias)`, as numerator over denominator."""
    weights = np.exp(queries @ keys.T * scale + bias)
    return weights @ values / weights.sum(-1, keepdims=True)
