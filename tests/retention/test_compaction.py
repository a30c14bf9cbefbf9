"""Compaction: which tokens stand for the dropped ones, and the values they get, against brute force."""

import numpy as np
import pytest
import torch

from keyhole.methods import Recipe
from tests import oracles
from tests.layers import Layer
from tests.oracles_compaction import asked, expected, shares, snapped
from tests.small import EVICTING, small

FIT = {"queries": 9, "future": 20, "ridge": 0.1}
OPTIONS = {"rows": 0.5, "every": 64} | FIT
SNAP = "snapkv(budget=20, sinks=2, window=6, kernel=1)"


def spec(other=SNAP, **options):
    given = ", ".join(f"{name}={value}" for name, value in (OPTIONS | options).items())
    return f"compaction({given}) + {other}"


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


def test_more_queries_than_tokens_that_are_kept():
    layer = prompted(spec(queries=40), batch=2, padding=[0, 30])
    check_against_oracle(layer, 0.5, queries=40)


def test_soft_caps_and_sink_logits():
    layer = prompted(spec(), softcap=3.0, sink_logits=torch.tensor([0.5, -1.0, 2.0, 0.0]), value_size=24)
    check_against_oracle(layer, 0.5)


def check_against_oracle(layer, rows, **options):
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
            stay, fitted = expected(layer, row, head, first, summaries, **FIT | options)
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
    for query, h in asked(layer, row, head, FIT["queries"], FIT["future"]):
        before = shares(query, h, keys[start:], layer.logits) @ values[start:]
        total += ((shares(query, h, keys[places], layer.logits) @ held - before) ** 2).sum()
    return total


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
