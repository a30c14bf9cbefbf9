"""Brute-force estimates from priority samples, in float64 numpy; imports no keyhole.

Legend, for one query of one head: N tokens, D head size, E size of values.
"""

import numpy as np


def drawn(weights, chance, candidates, count):
    """The `count` candidates of highest weight / chance, and the probability with which each is read.

    Source: Duffield, Lund, Thorup, "Priority sampling for estimation of arbitrary subset sums", JACM 2007.
    """
    order = sorted(candidates, key=lambda token: (-weights[token] / chance[token], token))
    threshold = weights[order[count]] / chance[order[count]] if count < len(order) else 0.0
    certain = {token: min(1.0, weights[token] / threshold) if threshold > 0 else 1.0 for token in candidates}
    return order[:count], certain


def sampled_attention(logits, values, always, read, chances, *, sink=None, likely=None, means=None):
    """[E]: exact over the tokens `always`, an estimate of the others by those `read` with `chances`.

    Where `likely [N]` (estimated logits) and `means [N, E]` (the mean value of a token's cluster, NaN without
    one) are given, they are counted for all that was not read for certain, and the sample corrects that.
    """
    top = logits.max()
    exact = np.exp(logits - top)
    total, out = (0.0 if sink is None else np.exp(sink - top)), np.zeros(values.shape[1])
    for token in always:
        total, out = total + exact[token], out + exact[token] * values[token]
    for token in read:
        times = 1 / chances[token]
        total, out = total + times * exact[token], out + times * exact[token] * values[token]
    if likely is not None:
        for token, chance in chances.items():
            if chance < 1 and not np.isnan(means[token, 0]):
                weight = np.exp(min(likely[token] - top, 30))
                times = 1 - (1 / chance if token in set(read) else 0)
                total, out = total + times * weight, out + times * weight * means[token]
    return out / total


def error_variance(logits, values, out, total, read, chances):
    """The trace of the covariance of `sampled_attention`, as a sample shows it, and its bound at 95%."""
    covariance, squares = np.zeros((values.shape[1], values.shape[1])), 0.0
    for token in read:
        chance = chances[token]
        term = np.exp(logits[token]) * (values[token] - out) / total
        part = (1 - chance) / chance**2
        covariance += part * np.outer(term, term)
        squares += (part * term @ term) ** 2
    trace = np.trace(covariance)
    if trace == 0:
        return 0.0, 0.0
    directions = max(trace**2 / (covariance**2).sum(), 1)
    terms = max(trace**2 / squares, 1)
    part, z = 2 / (9 * directions), 1.96
    normal = (1 - part + 1.645 * part**0.5) ** 1.5
    student = 1 + (z**2 + 1) / 4 / terms + (5 * z**4 + 16 * z**2 + 3) / 96 / terms**2
    return trace, trace**0.5 * normal * student
