"""Compaction while a text goes on: steps, crops, beams, saved state, prompts in pieces."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from keyhole.methods import Recipe
from tests import oracles
from tests.evictions import HISTORIES, Evicting
from tests.layers import Layer
from tests.oracles_compaction import shares
from tests.retention.test_compaction import SNAP, prompted, spec

LIVES = [f"{name}(budget=20, sinks=2, window=6)" for name in ("h2o", "snapkv", "streamingllm")]
LIVES += ["adakv(budget=20, sinks=2, window=6, every=3)"]


@settings(max_examples=15, deadline=None)
@given(history=HISTORIES)
@pytest.mark.parametrize("other", LIVES)
def test_any_life(other, history):
    """Keys are those that came, values are finite, and those of the newest tokens are as they came."""
    text = spec(other, queries=16, every=4)
    layer = Living(text, batch=2, padding=[0, 5])
    layer.live(text, history)


class Living(Evicting):
    """Values may change, so that what a step reads is compared with what is stored."""

    def attend(self, queries=1):
        before = self.cache.storage.keys().clone(), self.cache.storage.values().clone(), self.cache.kept
        valid = before[2].valid().clone()
        out = Layer.attend(self, queries)
        if queries == 1 and valid.shape[-1] == self.cache.kept.slots:
            self.check_step(out, before, valid)
        self.check_held()
        return out

    def check_step(self, out, held, valid):
        for row in range(len(valid)):
            for h in range(self.heads):
                shown = valid[row, h // 2]
                keys, values = (oracles.array(rows[row, h // 2][shown]) for rows in held[:2])
                weights = shares(oracles.array(self.query[row, h, -1]), h, keys, self.logits)
                np.testing.assert_allclose(out[row, h, 0], weights @ values, rtol=1e-3, atol=1e-4)

    def check_held(self):
        cache, policy = self.cache, self.cache.retention.policy
        assert cache.storage.length == cache.kept.slots
        assert torch.isfinite(cache.storage.values()).all()
        for row in range(len(self.starts)):
            for head in range(2):
                filling = int(cache.kept.filling[row, head])
                places = cache.kept.positions[row, head, filling:].long()
                assert torch.equal(cache.storage.keys()[row, head, filling:], self.keys[row, head, places])
                newest = places >= max(self.length - policy.window, 0)
                held = cache.storage.values()[row, head, filling:]
                if self.cropped == 0 or self.cropped == self.length:
                    assert torch.equal(held[newest], self.values[row, head, places[newest]])


def test_memory_stays_within_the_budget_while_generating():
    layer = Layer(spec("streamingllm(budget=20, sinks=2, window=6)", every=4))
    layer.append(60)
    layer.attend(60)
    for _ in range(30):
        layer.append(1)
        layer.attend()
        assert 20 <= layer.cache.kept.slots < 24
    assert torch.isfinite(layer.cache.storage.values()).all()


def test_queries_are_forgotten_once_tokens_were_dropped():
    layer = prompted(spec("h2o(budget=20, sinks=2, window=6)"))
    assert layer.cache.retention.scorer._observed.nbytes == 0
    assert not [name for name in layer.cache.state() if "compaction" in name]
    for _ in range(3):
        layer.append(1)
        layer.attend()
    assert layer.cache.state()["scorer.compaction.queries"].shape == (1, 4, 3, 16)
    layer.crop(61)
    assert layer.cache.state()["scorer.compaction.places"].tolist() == [60]


def test_pieces_of_a_prompt_held_to_its_end_are_one_prompt():
    whole, pieces = (Recipe.parse(spec(f"{SNAP[:-1]}, prompt=whole)")).layers(1)[0] for _ in range(2))
    given = prompted(SNAP, seed=5)
    for layer, bounds in ((whole, [0, 60]), (pieces, [0, 31, 55, 60])):
        for begin, end in pairwise(bounds):
            part = slice(begin, end)
            layer.append(given.keys[:, :, part], given.values[:, :, part])
            layer.attend(given.query[:, :, part], given.logits)
        layer.prepare()
    assert whole.kept.slots == 20
    assert torch.equal(whole.kept.positions, pieces.kept.positions)
    torch.testing.assert_close(whole.storage.values(), pieces.storage.values())


def test_pieces_keep_to_the_budget():
    layer = Layer(spec(queries=32))
    for _ in range(4):
        layer.append(40)
        layer.attend(40)
        assert layer.cache.kept.slots == 20
    layer.append(1)
    assert torch.isfinite(layer.attend()).all()
