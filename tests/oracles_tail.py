"""Brute-force attention over what is read and an estimate of the rest, in float64 numpy; imports no keyhole.

Legend, for one query of one head: N tokens, D head size, E size of values, C clusters.
"""

import numpy as np


def estimated_attention(query, keys, values, read, labels, *, scale, softcap=None, estimates=None):
    """query [D], keys [N, D], values [N, E] -> [E]: exact over the tokens `read`, the rest by cluster.

    Each other token with a label >= 0 has the mean value, and the logit of the mean key, of those of its
    cluster that are not read; with `estimates`, more by log(mean exp(estimate)) - mean estimate.
    """
    cap = (lambda x: x) if softcap is None else (lambda x: softcap * np.tanh(x / softcap))
    logs, rows = [], []
    for token in sorted(read):
        logs.append(cap(scale * keys[token] @ query))
        rows.append(values[token])
    rest = [token for token in range(len(labels)) if token not in read and labels[token] >= 0]
    for cluster in sorted({labels[token] for token in rest}):
        mine = [token for token in rest if labels[token] == cluster]
        mean = values[mine].mean(0)
        logit = cap(scale * keys[mine].mean(0) @ query)
        if estimates is not None:
            logit += np.log(np.exp(estimates[mine] - estimates[mine].mean()).mean())
        logs += [logit] * len(mine)
        rows += [mean] * len(mine)
    logs = np.array(logs)
    weights = np.exp(logs - logs.max())
    return weights @ np.array(rows) / weights.sum()
