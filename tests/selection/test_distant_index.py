"""Indexes of keys before RoPE, asked at one distance."""

import pytest
import torch

from keyhole.core.rope import FixedDistance, PlainRope
from keyhole.selection import BoxSelector, at_distance
from tests import oracles, oracles_positions
from tests.layers import Layer, check_codes
from tests.lives import live

COMMON = "sinks=2, window=4, dense_below=0"
METHODS = ["pqcache(subspaces=4, bits=4, iterations=4", "quest(page=4"]


def elected(layer):
    selection = layer.observed.read.selection
    return [
        [slots[:count].tolist() for slots, count in zip(*row, strict=True)]
        for row in zip(selection.slots, selection.counts, strict=True)
    ]


def turned_back(layer):
    """The keys of a layer as they were before RoPE, and the query at distance 9, as the paper's formulae."""
    keys, query = torch.empty_like(layer.keys), torch.empty_like(layer.query)
    for row, start in enumerate(layer.starts):
        bare = oracles_positions.unrotated_keys(oracles.array(layer.keys[row]), start)
        keys[row] = torch.tensor(bare)
        for head, vector in enumerate(oracles.array(layer.query[row, :, 0])):
            at_start = oracles_positions.rotated(vector, start - layer.length + 1)
            query[row, head, 0] = torch.tensor(oracles_positions.rotated(at_start, 9))
    return keys, query


@pytest.mark.parametrize("padding", [[0, 0], [0, 13]])
@pytest.mark.parametrize("seed", range(5))
def test_pages_are_those_of_keys_before_rope(padding, seed):
    shape = {"batch": 2, "padding": padding, "size": 8, "seed": seed}
    layer = Layer(f"quest(page=4, budget=8, distance=9, {COMMON})", **shape)
    layer.append(50)
    layer.attend()
    keys, query = turned_back(layer)
    plain = Layer(f"quest(page=4, budget=8, {COMMON})", **shape)
    plain.cache.append(keys, layer.values)
    plain.cache.attend(query, layer.logits, mask=layer.mask())
    assert elected(layer) == elected(plain)


@pytest.mark.parametrize("method", METHODS)
def test_a_key_that_answers_is_found_at_any_distance(method):
    found = dict.fromkeys((", distance=8", ""), 0)
    for options in found:
        for slot in range(10, 900, 60):
            layer = Layer(f"{method}, budget=4{options}, {COMMON})", kv_heads=1, groups=1, size=8)
            layer.append(1000)
            bare = torch.randn(8, generator=torch.Generator().manual_seed(slot)).numpy()
            layer.cache.storage.keys()[0, 0, slot] = torch.tensor(oracles_positions.rotated(40 * bare, slot))
            query = oracles_positions.rotated(bare, 999 - 8)
            layer.cache.attend(torch.tensor(query).float().view(1, 1, 1, 8), layer.logits)
            found[options] += slot in elected(layer)[0][0]
    assert found[", distance=8"] == 15
    if "pqcache" in method:  # boxes around so long a key hold all pages' answers
        assert found[""] < 15


def check_bare_codes(layer):
    """Every indexed slot has the code of the key that is stored there, as it was before RoPE."""
    slots = torch.arange(layer.length) - torch.tensor(layer.starts).unsqueeze(1)
    bare = Layer("dense")
    bare.cache, bare.keys = layer.cache, PlainRope().unrotate(layer.keys, slots)
    check_codes(bare)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", ["budget=7", "budget=0.3"])
def test_a_long_life(method, budget, monkeypatch):
    monkeypatch.setattr("tests.layers.check_codes", check_bare_codes)
    live(f"{method}, {budget}, distance=9, {COMMON})", kv_heads=3)


def test_only_the_index_is_held():
    sizes = []
    for options in ("", ", distance=9"):
        layer = Layer(f"quest(page=4, budget=8{options}, {COMMON})", size=8)
        layer.append(60)
        layer.append(1)
        layer.attend()
        sizes.append(layer.cache.footprint)
    assert sizes[0] == sizes[1]


def test_queries_seen_before_the_index_are_turned_when_padding_is_known():
    seen = []

    class Watching(BoxSelector):
        def see(self, queries, kv_heads, tokens):
            seen.append(queries)
            super().see(queries, kv_heads, tokens)

    rope = PlainRope()
    index = at_distance(Watching(4), FixedDistance(rope, 9))
    bare = torch.randn(2, 4, 3, 8)
    padding = torch.tensor([0, 5])
    positions = torch.arange(27, 30) - padding.unsqueeze(1)
    index.see(rope.rotate(bare, positions), 2, 30)
    index.reorder(torch.tensor([1, 0]))
    assert not seen
    layer = Layer(f"quest({COMMON})", batch=2, padding=[5, 0], size=8)
    layer.append(30)
    layer.append(1)
    layer.attend()
    index.build(layer.keys[:, :, :30], layer.observed.read.regions)
    wanted = rope.rotate(bare.flip(0), torch.full((2, 3), 9))
    torch.testing.assert_close(seen[0], wanted, rtol=1e-3, atol=1e-4)


def test_own_positions_need_no_wrapping():
    index = BoxSelector(4)
    assert at_distance(index, None) is index
