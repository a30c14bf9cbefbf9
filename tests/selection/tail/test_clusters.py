"""What clusters are made of, and how their labels are held."""

import pytest
import torch

import keyhole.selection.quantisers.keyclusters as module
from keyhole.core.layout import Regions
from keyhole.selection import Step
from keyhole.selection.tail.estimate import corrected_logits
from tests import oracles
from tests.layers import Layer, slots_read

SPEC = "pqcache(budget=9, sinks=2, window=6, dense_below=0, subspaces=4, bits=3, iterations=2)"
TAIL = "tail(tokens=5, dtype=float32)"


def started(spec=f"{SPEC} + {TAIL}", tokens=150, **options):
    layer = Layer(spec, **options)
    layer.append(tokens)
    layer.attend()
    layer.append(1)
    return layer, layer.attend()


def test_labels_grow_wider_as_clusters_need(monkeypatch):
    outs, labels = [], []
    for most in (module._NARROW, 31):
        monkeypatch.setattr(module, "_NARROW", most)
        layer, _ = started()
        for _ in range(30):
            layer.append(1)
            out = layer.attend()
        outs.append(out)
        labels.append(layer.cache.selector.clusters.labels)
    assert [held.dtype for held in labels] == [torch.int16, torch.int32]
    torch.testing.assert_close(labels[0].int(), labels[1])
    torch.testing.assert_close(*outs)


def test_values_part_clusters_of_equal_keys():
    """Two values among tokens of one key: no cluster has both."""
    layer = Layer(f"oracle(budget=9, sinks=2, window=6, dense_below=0) + {TAIL}", kv_heads=1)
    keys, kind = torch.ones(1, 1, 100, 16), (torch.arange(100) % 3 == 0)
    values = torch.where(kind[:, None], 1.0, -1.0).expand(1, 1, 100, 16)
    layer.cache.append(keys, values)
    layer.cache.attend(layer.draw(1, 2, 1, 16), layer.logits)
    labels = layer.cache.selector.clusters.labels[0, 0]
    ones, others = set(labels[2:][kind[2:]].tolist()), set(labels[2:][~kind[2:]].tolist())
    assert ones
    assert others
    assert not ones & others


def test_queries_weigh_axes_of_keys():
    """Tokens that no query tells apart share clusters, however far their keys are from each other."""
    parts = []
    for shown in (0, 1):
        layer = Layer(f"oracle(budget=9, sinks=2, window=6, dense_below=0) + {TAIL}", kv_heads=1)
        keys = torch.zeros(1, 1, 100, 16)
        keys[0, 0, :, 0] = 3.0 * (torch.arange(100) % 2)
        keys[0, 0, :, 1] = 3.0 * (torch.arange(100) // 2 % 2)
        queries = torch.zeros(1, 2, 100, 16)
        queries[..., shown] = 1.0
        layer.cache.append(keys, torch.ones(1, 1, 100, 16))
        layer.cache.attend(queries, layer.logits)
        layer.cache.append(keys[:, :, :1], torch.ones(1, 1, 1, 16))
        layer.cache.attend(queries[:, :, :1], layer.logits)
        clusters = layer.cache.selector.clusters
        parts.append(clusters._factors[0, 0].diagonal())
    assert parts[0][0] > 5 * parts[0][1]
    assert parts[1][1] > 5 * parts[1][0]


def test_a_budget_of_tokens_is_spent_by_corrected_logits():
    layer, _ = started(batch=2, padding=[0, 9])
    seen, selector = layer.observed, layer.cache.selector
    regions: Regions = seen.read.regions
    step = Step(seen.query, seen.storage, regions, torch.zeros(2, 4), seen.logits, layer.cache.reading.budget)
    logits = corrected_logits(selector.inner.token_logits(step), seen.query, selector.clusters, seen.logits)
    logits = oracles.array(logits)
    read = slots_read(layer)
    for row, head in ((row, head) for row in range(2) for head in range(2)):
        first, stop = int(regions.first[row]), int(regions.stop[row])
        always = regions.always[row, : regions.always_counts[row]].tolist()
        shares = 0
        for group in range(2):
            query = oracles.array(seen.query[row, 2 * head + group])
            exact = oracles.array(layer.keys[row, head, always]) @ query * layer.logits.scale
            weights = [*exact, *logits[row, head, group, first:stop]]
            weights = torch.tensor(weights).softmax(0)[len(always) :]
            shares = shares + weights
        best = (shares.topk(9).indices + first).tolist()
        assert sorted(best + always) == read[row][head]


@pytest.mark.parametrize("text", ["oracle({})", "tokenselect({})", "quest({}, page=5)"])
def test_others_pick_as_without_a_tail(text):
    text = text.format("budget=9, sinks=2, window=6, dense_below=0")
    plain, tailed = started(text)[0], started(f"{text} + {TAIL}")[0]
    assert slots_read(plain) == slots_read(tailed)


def test_means_leave_the_choice_to_the_codes():
    plain, tailed = started(SPEC)[0], started(f"{SPEC} + tail(logits=means)")[0]
    assert slots_read(plain) == slots_read(tailed)
