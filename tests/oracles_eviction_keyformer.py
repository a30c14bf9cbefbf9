"""Keyformer and H2O by their definition: one sequence, one query row at a time, in plain numpy."""

import hashlib
from math import pi, sqrt
from statistics import NormalDist

import numpy as np


def mixed(words):
    words = words ^ (words >> np.uint32(16))
    words = words * np.uint32(0x7FEB352D)
    words = words ^ (words >> np.uint32(15))
    words = words * np.uint32(0x846CA68B)
    return words ^ (words >> np.uint32(16))


def uniform(seed, layer, head, query, keys):
    """The numbers in (0, 1) of a query at some position for keys at others."""
    digest = hashlib.blake2b(f"{seed} {layer}".encode(), digest_size=8).digest()
    first, second = mixed(mixed(np.frombuffer(digest, "<u4") + np.uint32(head)) + np.uint32(query))
    word = np.asarray(keys, np.uint32) * np.uint32(0x9E3779B9) + first
    word = (word ^ (word >> np.uint32(16))) * np.uint32(0x7FEB352D) ^ second
    word = (word ^ (word >> np.uint32(15))) * np.uint32(0x846CA68B)
    word = word ^ (word >> np.uint32(16))
    return ((word >> np.uint32(9)).astype(np.float64) + 0.5) / 2**23


def noise(kind, *place):
    numbers = uniform(*place)
    if kind == "gumbel":
        return -np.log(-np.log(numbers))
    if kind == "gaussian":
        return 0.5772156649 + pi / sqrt(6) * np.array([NormalDist().inv_cdf(number) for number in numbers])
    return np.full(len(numbers), {"constant": 0.5772156649, "none": 0.0}[kind])


class Oracle:
    """The positions that each KV head keeps; `scores` are theirs."""

    def __init__(
        self,
        heads,
        groups,
        *,
        budget,
        sinks,
        window,
        recent,
        noise="none",
        seed=0,
        layer=0,
        tau=lambda _step: 1.0,
        queries=0,
        normalise=False,
    ):
        self.groups, self.budget, self.sinks = groups, budget, sinks
        self.recent = max(window, int(recent * budget))
        self.noise, self.place, self.tau = noise, (seed, layer), tau
        self.queries, self.normalise = queries, normalise
        self.kept = [[] for _ in range(heads)]
        self.scores, self.seen = [{} for _ in range(heads)], [{} for _ in range(heads)]
        self.length = self.step = 0

    def feed(self, query, keys, scale):
        """Query `[H, Q, D]` of the newest tokens, keys `[Hkv, N, D]` of all there were."""
        count = query.shape[1]
        self.step = 0 if count > 1 else self.step + 1
        for kept in self.kept:
            kept += range(self.length, self.length + count)
        begin = max(0, count - self.queries) if self.queries and count > 1 else 0
        for row in range(begin, count):
            for head in range(len(self.kept)):
                self._pay(head, query[:, row], self.length + row, keys, scale)
        self.length += count
        for head in range(len(self.kept)):
            self._evict(head)

    def _pay(self, head, query, position, keys, scale):
        scores, seen = self.scores[head], self.seen[head]
        visible = [place for place in self.kept[head] if place <= position]
        for place in visible:
            seen[place] = seen.get(place, 0) + 1
        for each in range(head * self.groups, (head + 1) * self.groups):
            logits = keys[head, visible] @ query[each] * scale
            logits = (logits + noise(self.noise, *self.place, each, position, visible)) / self.tau(self.step)
            weights = np.exp(logits - logits.max())
            for place, weight in zip(visible, weights / weights.sum(), strict=True):
                scores[place] = scores.get(place, 0.0) + weight

    def worth(self, head, place):
        score = self.scores[head].get(place, 0.0)
        return score / max(1, self.seen[head].get(place, 0)) if self.normalise else score

    def _evict(self, head):
        kept = self.kept[head]
        if len(kept) <= self.budget:
            return
        recent = min(self.recent, self.budget - self.sinks)
        middle = kept[self.sinks : len(kept) - recent]
        best = sorted(middle, key=lambda place: (-self.worth(head, place), place))
        best = best[: self.budget - self.sinks - recent]
        self.kept[head] = sorted(kept[: self.sinks] + best + kept[len(kept) - recent :])
