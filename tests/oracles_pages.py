"""Brute-force answers for Quest, DELTA and TokenSelect, from the papers' formulae in float64 numpy loops.

As in `tests.oracles`: nothing here imports keyhole. One batch row; legend as there, P pages.
"""

import numpy as np

from tests import oracles


def pages_of(first, last, page):
    """The competing slots of each page that has any, by page number."""
    found = {}
    for slot in range(first, last):
        found.setdefault(slot // page, []).append(slot)
    return found


def read_pages(scores, pages, budget):
    """Slots of the best pages; `scores` by page number, of equals the lower. The last may lack its end."""
    read = []
    for number in sorted(pages, key=lambda number: (-scores[number], number)):
        read += pages[number][: budget - len(read)]
    return sorted(read)


def box_bounds(query, keys, boxed, *, scale):
    """The greatest logit a key in the box around `keys [N, D]` of the slots `boxed` can have."""
    low, high = keys[boxed].min(0), keys[boxed].max(0)
    return scale * sum(max(q * low[d], q * high[d]) for d, q in enumerate(query))


def quest_scores(query, keys, pages, boxed, *, scale):
    """query [Q, D], keys [H, N, D] -> for each KV head, pages' scores by number.

    Each query head's softmax over the bounds of pages, then the sum over the group. `boxed` are the slots in
    each page's box, by page number.
    """
    group, scores = len(query) // len(keys), []
    for head in range(len(keys)):
        total = dict.fromkeys(pages, 0.0)
        for q in range(head * group, (head + 1) * group):
            bounds = {
                number: box_bounds(query[q], keys[head], boxed[number], scale=scale) for number in pages
            }
            top = max(bounds.values())
            weight = sum(np.exp(bound - top) for bound in bounds.values())
            for number, bound in bounds.items():
                total[number] += np.exp(bound - top) / weight
        scores.append(total)
    return scores


def coded_bounds(query, keys, pages, first, prompt):
    """query [D], keys [N, D] -> by page number the greatest and the least logit in its box of 4-bit ends.

    Each channel has 14 steps from the least to the greatest of the prompt's keys from `first` on; ends are
    rounded outwards, and what lies beyond gets a level of its own, half the range further out. Third, how far
    a scan may be off that rounds each channel's part to 255 steps of the widest.
    """
    keys = keys.astype(np.float32)  # as codes are made, since a key may lie on a level
    low, high = keys[first:prompt].min(0), keys[first:prompt].max(0)
    step = np.maximum(high / np.float32(14) - low / np.float32(14), np.float32(1e-30))

    def level(code, channel):
        code = -7 if code < 0 else 21 if code > 14 else code
        return float(low[channel]) + code * float(step[channel])

    spans = [abs(q) * float(21 * step[d]) for d, q in enumerate(query)]
    rounding = 2 * len(query) * max(spans) / 255 / 2 + 2e-3 * np.abs(query) @ step + 1e-4
    found = {}
    for number, slots in pages.items():
        upper = lower = 0.0
        for d, q in enumerate(query):
            up = level(max(0, np.ceil((keys[slots, d].max() - low[d]) / step[d] - np.float32(1e-3))), d)
            down = level(min(14, np.floor((keys[slots, d].min() - low[d]) / step[d] + np.float32(1e-3))), d)
            upper, lower = upper + max(q * up, q * down), lower + min(q * up, q * down)
        found[number] = upper, lower, rounding
    return found


def delta_scores(query, keys, pages, start, *, scale, softcap=None, sink_logits=None):
    """query [Q, D], keys [H, N, D] -> scores by page number, one list for all heads.

    Dense softmax over the slots from `start` on, the greatest over all query heads, summed over the page.
    """
    logits = oracles.exact_logits(query, keys, scale=scale, softcap=softcap)
    probabilities = np.zeros_like(logits)
    for q in range(len(query)):
        extra = [] if sink_logits is None else [sink_logits[q]]
        seen = [*logits[q, start:], *extra]
        top = max(seen)
        total = sum(np.exp(logit - top) for logit in seen)
        for n in range(start, logits.shape[1]):
            probabilities[q, n] = np.exp(logits[q, n] - top) / total
    greatest = [max(probabilities[q, n] for q in range(len(query))) for n in range(logits.shape[1])]
    return {number: sum(greatest[slot] for slot in slots) for number, slots in pages.items()}


def delta_roles(layers, full):
    """The roles of a model's layers 0 .. layers - 1, as the rule reads."""
    found = []
    for layer in range(layers):
        if layer not in full:
            found.append("follower")
        elif layer + 1 in full or layer == layers - 1:
            found.append("dense")
        else:
            found.append("leader")
    return found


def soft_votes(query, keys, first, last, *, scale):
    """query [Q, D], keys [H, N, D] -> votes [Q, last - first]: each head's softmax over the candidates."""
    group, votes = len(query) // len(keys), np.zeros((len(query), last - first))
    for q in range(len(query)):
        logits = [scale * float(query[q] @ keys[q // group, n]) for n in range(first, last)]
        weights = [np.exp(logit - max(logits)) for logit in logits]
        votes[q] = [weight / sum(weights) for weight in weights]
    return votes
