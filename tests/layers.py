"""A layer cache fed with random tokens, beside plain tensors that hold the same: steps can be checked."""

import numpy as np
import torch

from keyhole import kernels
from keyhole.attention import Logits
from keyhole.methods import Recipe
from keyhole.selection import HashSelector
from tests import oracles


class Layer:
    """One layer of a method, and the keys and values it was given.

    A method whose only layer would read everything has a second, which is the one that is looked at; the
    first gets the same tokens and queries.
    `padding` counts the unused slots at the start of each batch row; what is there is noise of any size.
    """

    def __init__(
        self,
        spec,
        *,
        batch=1,
        kv_heads=2,
        groups=2,
        size=16,
        value_size=None,
        padding=None,
        softcap=None,
        sink_logits=None,
        seed=0,
    ):
        self.before, self.cache = _selecting(Recipe.parse(spec))
        self.cache.observe(self._observe)
        self.heads = kv_heads * groups
        self.padding = padding
        self.logits = Logits(size**-0.5, softcap, sink_logits)
        self.random = torch.Generator().manual_seed(seed)
        self.keys = torch.empty(batch, kv_heads, 0, size)
        self.values = torch.empty(batch, kv_heads, 0, value_size or size)
        self.observed = None
        self.query = None

    def draw(self, *shape):
        return torch.randn(shape, generator=self.random)

    @property
    def length(self):
        return self.keys.shape[2]

    @property
    def starts(self):
        """The first token of each batch row."""
        return self.padding or [0] * self.keys.shape[0]

    def append(self, count, level=1.0):
        batch, heads = self.keys.shape[:2]
        keys = level * self.draw(batch, heads, count, self.keys.shape[3])
        values = self.draw(batch, heads, count, self.values.shape[3])
        for row, start in enumerate(self.starts):
            keys[row, :, : max(start - self.length, 0)] *= 1e4
        for cache in (*self.before, self.cache):
            cache.append(keys, values)
        self.keys, self.values = torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)

    def attend(self, queries=1):
        """Attention of the newest tokens; the mask is causal and hides the padding."""
        self.observed = None
        self.query = 3 * self.draw(self.keys.shape[0], self.heads, queries, self.keys.shape[3])
        mask = self.mask(queries)
        for cache in self.before:
            cache.attend(self.query, self.logits, mask=mask)
        return self.cache.attend(self.query, self.logits, mask=mask)

    def mask(self, queries=1):
        if self.padding is None:
            return None
        slots = torch.arange(self.length)
        causal = slots <= torch.arange(self.length - queries, self.length).view(-1, 1)
        return causal & (slots >= torch.tensor(self.padding).view(-1, 1, 1, 1))

    def step(self):
        """One decode step, checked: a token arrives, its query is answered."""
        self.append(1)
        out = self.attend()
        check_step(self, out)
        return out

    def crop(self, length):
        for cache in (*self.before, self.cache):
            cache.crop(length)
        self.keys, self.values = self.keys[:, :, :length], self.values[:, :, :length]

    def reorder(self, rows):
        for cache in (*self.before, self.cache):
            cache.reorder(torch.tensor(rows))
        self.keys, self.values = self.keys[rows], self.values[rows]
        if self.padding is not None:
            self.padding = [self.padding[row] for row in rows]

    def dense(self, queries=1):
        """The oracle's attention of the last queries over everything, `[B, H, Q, Dv]`."""
        sinks = self.logits.sink_logits
        rows = [
            oracles.causal_attention(
                *(oracles.array(tensor[row]) for tensor in (self.query, self.keys, self.values)),
                first=start,
                scale=self.logits.scale,
                softcap=self.logits.softcap,
                sink_logits=None if sinks is None else oracles.array(sinks),
            )
            for row, start in enumerate(self.starts)
        ]
        return np.stack(rows)[:, :, -queries:]

    def _observe(self, observation):
        self.observed = observation


def _selecting(recipe):
    """The fewest layers of a recipe of which the last does not read everything: all before it, and it."""
    cache = recipe.layers(1)[0]
    if cache.selector is None or not cache.selector.reads_all:
        return [], cache
    *before, cache = recipe.layers(2)
    return before, cache


def check_dense(layer, out, queries=1):
    """`out` is exact attention over everything, except where a query is padding."""
    expected = layer.dense(queries)
    for row, start in enumerate(layer.starts):
        real = max(start - (layer.length - queries), 0)
        np.testing.assert_allclose(out[row, :, real:], expected[row, :, real:], rtol=1e-3, atol=1e-4)


def slots_read(layer):
    """What the observed step read: for each batch row and KV head, sorted slots, each as often as read."""
    parts, selection = layer.observed.read.regions, layer.observed.read.selection
    return [
        [
            sorted(
                parts.always[row, : parts.always_counts[row]].tolist()
                + selection.slots[row, head, : selection.counts[row, head]].tolist()
            )
            for head in range(layer.keys.shape[1])
        ]
        for row in range(layer.keys.shape[0])
    ]


def index_of(layer):
    """A product quantiser's codebooks `[B, H, M, C, S]` and the codes of indexed slots, `[B, H, N, M]`."""
    selector = layer.cache.selector
    held, quantiser = selector.state(), getattr(selector, "inner", selector)
    codes = kernels.read_codes(
        held["codes"].flatten(0, 1), 0, selector.length, subspaces=quantiser.subspaces, bits=quantiser.bits
    )
    return held["codebooks"], codes.unflatten(0, held["codes"].shape[:2])


def check_codes(layer):
    """Every indexed slot has the code of the key that is stored there, up to float32 rounding."""
    books, codes = index_of(layer)
    keys, rotation = layer.keys[:, :, : codes.shape[2]], layer.cache.selector.state().get("rotation")
    keys = keys if rotation is None else keys @ rotation
    for row in zip(codes, keys, books, strict=True):
        assert oracles.pq_code_error(*map(oracles.array, row)) < 1e-5


def check_step(layer, out):
    """The step attended to everything, or to the always-read tokens and chosen others, each once."""
    assert layer.cache.length == layer.length
    assert torch.equal(layer.cache.storage.keys(), layer.keys)
    assert torch.equal(layer.cache.storage.values(), layer.values)
    if layer.observed is None:
        check_dense(layer, out)
        return
    if "codes" in layer.cache.selector.state():
        check_codes(layer)
    sinks, selection = layer.logits.sink_logits, layer.observed.read.selection
    reading = layer.cache.reading
    for row, reads in enumerate(slots_read(layer)):
        real = layer.length - layer.starts[row]
        early, middle, late = oracles.regions(layer.starts[row], layer.length, reading.sinks, reading.window)
        for head, read in enumerate(reads):
            assert len(read) == len(set(read)), "a token is read twice"
            assert set(early + late) <= set(read) <= set(early + middle + late)
            if reading.budget.mass is None:
                most = len(early + late) + min(reading.budget.limit(real), len(middle))
                # Who reads whole blocks leaves up to one, and what sinks and window have of two others.
                left = 3 * (getattr(layer.cache.selector, "block", 1) - 1)
                # Who samples may find less.
                found = isinstance(layer.cache.selector, HashSelector)
                assert (len(early + late) if found else most - left) <= len(read) <= most
            assert 0 <= float(selection.mass[row, head]) <= 1 + 1e-5
        expected = oracles.attention(
            *(oracles.array(tensor[row]) for tensor in (layer.query[:, :, -1], layer.keys, layer.values)),
            reads,
            scale=layer.logits.scale,
            softcap=layer.logits.softcap,
            sink_logits=None if sinks is None else oracles.array(sinks),
        )
        expected = beside(expected, layer.observed.read.rest, row)
        np.testing.assert_allclose(out[row, :, 0], expected, rtol=1e-3, atol=1e-4)


def beside(exact, rest, row):
    """Exact attention (out and log-sum-exp) of a row with an estimate merged in, where there is one."""
    out, lse = exact
    if rest is None:
        return out
    share = 1 / (1 + np.exp(oracles.array(rest.lse[row]) - lse))[:, None]
    return share * out + (1 - share) * oracles.array(rest.out[row])
