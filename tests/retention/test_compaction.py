"""Compaction: which tokens stand for the dropped ones, and the values they get, against brute force."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from keyhole.methods import Recipe
from tests import oracles
from tests.evictions import HISTORIES, Evicting
from tests.layers import Layer
from tests.small import EVICTING, small

OPTIONS = {"rows": 0.5, "queries": 9, "future": 20, "ridge": 0.1, "every": 64}
SNAP = "snapkv(budget=20, sinks=2, window=6, kernel=1)"
LIVES = [
    "h2o(budget=20, sinks=2, window=6)",
    "snapkv(budget=20, sinks=2, window=6)",
    "adakv(budget=20, every=3)",
]


def spec(other=SNAP, **options):
    given = ", ".join(f"{name}={value}" for name, value in (OPTIONS | options).items())
    return f"compaction({given}) + {other}"


def rotated(vector, by, base=10_000.0):
    """RoPE from its definition, channel i paired with i + D / 2."""
    half, out = len(vector) // 2, vector.copy()
    for i in range(half):
        angle = by * base ** (-i / half)
        a, b = vector[i], vector[i + half]
        out[i], out[i + half] = (
            a * math.cos(angle) - b * math.sin(angle),
            a * math.sin(angle) + b * math.cos(angle),
        )
    return out


def asked(layer, row, head, queries, future):
    """The newest queries of a head's group that are no padding, at the positions to come, and their heads."""
    found = []
    for h in (2 * head, 2 * head + 1):
        for newest in range(min(queries, layer.query.shape[2])):
            place = layer.length - 1 - newest
            if place >= layer.starts[row]:
                ahead = int(newest * (math.sqrt(5) - 1) / 2 % 1 * future)
                query = oracles.array(layer.query[row, h, layer.query.shape[2] - 1 - newest])
                found.append((rotated(query, layer.length + ahead - place), h))
    return found


def shares(query, head, keys, logits):
    """Softmax weights of one query, of which a sink logit takes its part."""
    products = logits.scale * keys @ query
    if logits.softcap is not None:
        products = logits.softcap * np.tanh(products / logits.softcap)
    weights = np.exp(products)
    sink = 0.0 if logits.sink_logits is None else math.exp(logits.sink_logits[head])
    return weights / (weights.sum() + sink)


def expected(layer, row, head, first, summaries):
    """Positions and values: the tokens `first`, the sinks, the window, and the best of the rest."""
    start, length = layer.starts[row], layer.length
    keys, values = (oracles.array(held[row, head]) for held in (layer.keys, layer.values))
    there = list(range(start, length))
    observed = asked(layer, row, head, OPTIONS["queries"], OPTIONS["future"])
    weights = np.array([shares(query, h, keys[there], layer.logits) for query, h in observed])
    always = [*range(start, start + 2), *range(length - 6, length)]
    rest = [p for p in there if p not in first and p not in always]
    best = sorted(rest, key=lambda p: (-weights[:, p - start].sum(), p))[:summaries]
    stay = sorted([*always, *first, *best])
    left = np.array([shares(query, h, keys[stay], layer.logits) for query, h in observed])
    missing = weights @ values[there] - left @ values[stay]
    free = [stay.index(p) for p in sorted([*first, *best])]
    part = left[:, free]
    weight = OPTIONS["ridge"] * np.trace(part.T @ part) / len(free)
    change = np.linalg.solve(part.T @ part + weight * np.eye(len(free)), part.T @ missing)
    fitted = values[stay].copy()
    fitted[free] += change
    return stay, fitted


def snapped(layer, row, head, count):
    """The tokens SnapKV keeps between sinks and window."""
    start, length = layer.starts[row], layer.length
    keys, total = oracles.array(layer.keys[row, head]), np.zeros(length)
    for h in (2 * head, 2 * head + 1):
        for at in range(length - 6, length):
            query = oracles.array(layer.query[row, h, layer.query.shape[2] - length + at])
            total[start : at + 1] += shares(query, h, keys[start : at + 1], layer.logits)
    return sorted(range(start + 2, length - 6), key=lambda p: (-total[p], p))[:count]


def prompted(text, tokens=60, **more):
    layer = Layer(text, **more)
    layer.append(tokens)
    layer.attend(tokens)
    return layer


@pytest.mark.parametrize("rows", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("padding", [None, [0, 9], [0, 54]])
def test_tokens_and_values_are_those_of_the_definition(rows, padding):
    layer = prompted(spec(rows=rows), batch=2, padding=padding, seed=1)
    check_against_oracle(layer, rows)


def test_soft_caps_and_sink_logits():
    layer = prompted(spec(), softcap=3.0, sink_logits=torch.tensor([0.5, -1.0, 2.0, 0.0]), value_size=24)
    check_against_oracle(layer, 0.5)


def check_against_oracle(layer, rows):
    kept, storage = layer.cache.kept, layer.cache.storage
    for row, start in enumerate(layer.starts):
        for head in range(2):
            filling = int(kept.filling[row, head])
            places, values = kept.positions[row, head, filling:], storage.values()[row, head, filling:]
            assert torch.equal(storage.keys()[row, head, filling:], layer.keys[row, head, places.long()])
            if layer.length - start <= 20:
                assert torch.equal(values, layer.values[row, head, start:])
                continue
            summaries = int(12 * rows)
            first = snapped(layer, row, head, 12 - summaries)
            stay, fitted = expected(layer, row, head, first, summaries)
            assert places.tolist() == stay
            np.testing.assert_allclose(values, fitted, rtol=1e-3, atol=1e-4)


def test_a_text_that_is_shorter_than_the_budget_is_left_as_it_is():
    layer = prompted(spec("snapkv(budget=100)"))
    assert torch.equal(layer.cache.storage.values(), layer.values)
    layer.step()


@pytest.mark.parametrize(
    "other", [str(small(name, 20)) for name in EVICTING] + ["mpcache(keep=20, sinks=2, window=6)"]
)
def test_every_method_that_evicts_can_be_wrapped(other):
    """As many tokens are kept, keys are as they came, and observed queries get nearer to what they got."""
    alone, wrapped = (prompted(text, batch=2, padding=[0, 9]) for text in (other, spec(other)))
    for layer in (alone, wrapped):
        layer.cache.prepare(layer.mask())
    assert float(alone.cache.kept.average) == pytest.approx(float(wrapped.cache.kept.average), abs=1)
    kept, storage = wrapped.cache.kept, wrapped.cache.storage
    errors = {True: 0.0, False: 0.0}
    for row in range(2):
        for head in range(2):
            filling = int(kept.filling[row, head])
            places, values = kept.positions[row, head, filling:].long(), storage.values()[row, head, filling:]
            assert torch.equal(storage.keys()[row, head, filling:], wrapped.keys[row, head, places])
            assert torch.equal(values[:2], wrapped.values[row, head, places[:2]])
            assert torch.equal(values[-6:], wrapped.values[row, head, places[-6:]])
            for fitted, held in ((True, values), (False, wrapped.values[row, head, places])):
                errors[fitted] += error(wrapped, row, head, places, oracles.array(held))
    assert errors[True] < 0.9 * errors[False]


def error(layer, row, head, places, held):
    """The squared error of what observed queries get, of all that is kept."""
    start = layer.starts[row]
    keys, values = (oracles.array(rows[row, head]) for rows in (layer.keys, layer.values))
    total = 0.0
    for query, h in asked(layer, row, head, OPTIONS["queries"], OPTIONS["future"]):
        before = shares(query, h, keys[start:], layer.logits) @ values[start:]
        total += ((shares(query, h, keys[places], layer.logits) @ held - before) ** 2).sum()
    return total


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


def test_rows_of_a_batch_are_what_they_are_alone():
    together = prompted(spec(), batch=2, padding=[0, 9], seed=3)
    for row, start in enumerate([0, 9]):
        alone = Recipe.parse(spec()).layers(1)[0]
        one = slice(row, row + 1)
        alone.append(together.keys[one, :, start:], together.values[one, :, start:])
        alone.attend(together.query[one, :, start:], together.logits)
        assert torch.equal(alone.kept.positions[0] + start, together.cache.kept.positions[row])
        torch.testing.assert_close(alone.storage.values()[0], together.cache.storage.values()[row])


def test_it_is_around_other_wrappers_wherever_it_is_written():
    texts = f"compaction + criticalkv + {SNAP}", f"criticalkv + compaction + {SNAP}"
    first, second = (prompted(text).cache for text in texts)
    assert torch.equal(first.storage.values(), second.storage.values())
    assert type(first.retention.scorer) is type(second.retention.scorer)


def test_layers_that_follow_are_fitted_too():
    layers = Recipe.parse("compaction + mpcache(keep=20, sinks=2, window=6, share=true)").layers(4)
    draw, given = torch.Generator().manual_seed(0), []
    for layer in layers:
        keys, values, query = (torch.randn(1, heads, 60, 16, generator=draw) for heads in (2, 2, 4))
        layer.append(keys, values)
        layer.attend(query, prompted(SNAP).logits)
        given.append(values)
    for layer in layers:
        layer.prepare()
    assert torch.equal(layers[2].kept.positions, layers[3].kept.positions)
    for layer, values in zip(layers[2:], given[2:], strict=True):
        assert layer.kept.slots == 20
        came = values.gather(2, layer.kept.positions.long().unsqueeze(-1).expand(-1, -1, -1, 16))
        changed = (layer.storage.values() != came).any(-1)
        assert changed[:, :, 2:-6].all()
        assert not changed[:, :, :2].any()
        assert not changed[:, :, -6:].any()
