"""A layer that drops tokens, beside plain tensors of all it was given."""

import numpy as np
import torch
from hypothesis import strategies as st

from keyhole.methods import Recipe
from tests import oracles
from tests.layers import Layer, beside

HISTORIES = st.lists(
    st.one_of(
        st.tuples(st.just("prompt"), st.sampled_from([2, 31, 100])),
        st.tuples(st.just("step"), st.integers(1, 9)),
        st.tuples(st.just("crop"), st.integers(7, 120)),
        st.tuples(st.just("reorder"), st.lists(st.integers(0, 1), min_size=2, max_size=2)),
        st.tuples(st.just("restart"), st.none()),
    ),
    min_size=1,
    max_size=8,
)


class Evicting(Layer):
    """`keys` and `values` are of every token there was; `read` is what the last step read."""

    cropped = 0  # before that, newest tokens may be gone

    def attend(self, queries=1):
        if queries == 1:
            before = self.kept()
        out = super().attend(queries)
        if queries == 1:
            self.read = before
            check_read(self, out, before)
        check_stored(self)
        return out

    def kept(self):
        """The positions kept, for each batch row and KV head; padding that came last is not among them."""
        positions = self.cache.kept.positions
        return [
            [[p for p in head.tolist() if p >= start] for head in row]
            for row, start in zip(positions, self.starts, strict=True)
        ]

    def crop(self, length):
        super().crop(length)
        self.cropped = min(self.length, length)

    def prompt(self, tokens):
        self.append(tokens)
        self.attend(tokens)

    def step(self):
        self.append(1)
        return self.attend()

    def steps(self, count):
        for _ in range(count):
            self.step()

    def restart(self, spec):
        """Go on in a fresh cache, from what the state of this one says."""
        state = {name: tensor.clone() for name, tensor in self.cache.state().items()}
        fresh = Recipe.parse(spec).layers(1)[0]
        fresh.restore(state, self.cache.indexed)
        fresh.observe(self._observe)
        self.cache = fresh

    def live(self, spec, history):
        """One of HISTORIES, after a prompt, each step checked."""
        act = {
            "prompt": self.prompt,
            "step": self.steps,
            "crop": self.crop,
            "reorder": self.reorder,
            "restart": lambda _: self.restart(spec),
        }
        self.prompt(13)
        for action, argument in history:
            act[action](argument)
        self.step()


def check_read(layer, out, reads, rest=None):
    """The newest token's attention is exact over what was read, with an estimate `rest` of what was not."""
    sinks = layer.logits.sink_logits
    for row, read in enumerate(reads):
        exact = oracles.attention(
            *(oracles.array(tensor[row]) for tensor in (layer.query[:, :, -1], layer.keys, layer.values)),
            read,
            scale=layer.logits.scale,
            softcap=layer.logits.softcap,
            sink_logits=None if sinks is None else oracles.array(sinks),
        )
        np.testing.assert_allclose(out[row, :, 0], beside(exact, rest, row), rtol=1e-3, atol=1e-4)


def check_stored(layer):
    """Positions ascend, sinks and newest tokens are there, and keys and values are those that came."""
    cache, policy = layer.cache, layer.cache.retention.policy
    assert cache.length == layer.length
    storage, kept = cache.storage, cache.kept
    assert storage.length == kept.slots
    positions = kept.positions
    for row, start in enumerate(layer.starts):
        for head, slots in enumerate(positions[row]):
            held = [position for position in slots.tolist() if position >= 0]
            filling = len(slots) - len(held)
            assert slots[:filling].tolist() == [-1] * filling == [-1] * int(kept.filling[row, head])
            assert held == sorted(set(held))
            assert all(start <= position for position in held)
            tokens = max(layer.length - start, 0)
            assert held[: policy.sinks] == list(range(start, layer.length))[: policy.sinks]
            newest = range(max(layer.length - policy.window, start, layer.cropped), layer.length)
            assert set(newest) <= set(held)
            assert torch.equal(storage.keys()[row, head, filling:], layer.keys[row, head, held])
            assert torch.equal(storage.values()[row, head, filling:], layer.values[row, head, held])
            assert len(held) <= tokens


def counts(layer):
    """Tokens kept, `[B][Hkv]`."""
    return [[len(head) for head in row] for row in layer.kept()]
