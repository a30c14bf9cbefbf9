"""Votes on keys without their rotation, scored as if all lay equally far back, against a brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.core.errors import SpecError
from keyhole.methods import Recipe
from tests import oracles, oracles_pages, oracles_positions
from tests.layers import Layer
from tests.lives import live

SINKS, WINDOW = 2, 4


def spec(options):
    return f"tokenselect({options}, sinks={SINKS}, window={WINDOW}, dense_below=0)"


def expected(layer, row, budget, distance, *, per_head):
    """The slots that the rotated query elects among keys that are not rotated at all."""
    start, newest, heads = layer.starts[row], layer.length - 1, layer.keys.shape[1]
    bare = oracles_positions.unrotated_keys(oracles.array(layer.keys[row]), start)
    query = [
        oracles_positions.rotated(oracles_positions.rotated(head, start - newest), distance)
        for head in oracles.array(layer.query[row, :, 0])
    ]
    _, middle, _ = oracles.regions(start, layer.length, SINKS, WINDOW)
    if not middle:
        return [[]] * heads
    scale = layer.logits.scale
    votes = oracles_pages.soft_votes(np.array(query), bare, middle[0], middle[-1] + 1, scale=scale)
    votes = votes.reshape(heads, len(query) // heads, -1).sum(1)
    votes = votes if per_head else votes.sum(0, keepdims=True).repeat(heads, 0)
    return [sorted(middle[n] for n in oracles.top_k(head, budget)) for head in votes]


def elected(layer, row):
    selection = layer.observed.read.selection
    return [
        slots[:count].tolist()
        for slots, count in zip(selection.slots[row], selection.counts[row], strict=True)
    ]


@settings(max_examples=25)
@given(
    st.integers(1, 9),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 30),
    st.integers(WINDOW, 300),
    st.integers(0, 99),
)
def test_the_elected_of_a_brute_force(budget, groups, per_head, padding, distance, seed):
    layer = Layer(
        spec(f"budget={budget}, per_head={per_head}, distance={distance}"),
        batch=2,
        padding=[0, padding],
        groups=groups,
        size=8,
        seed=seed,
    )
    layer.append(40)
    for _ in range(3):
        layer.append(1)
        layer.attend()
        for row in range(2):
            assert elected(layer, row) == expected(layer, row, budget, distance, per_head=per_head)


def test_a_key_that_answers_is_found_at_any_distance():
    """What it was before RoPE decides; at its true position the answer depends on where it stands."""
    found = dict.fromkeys((", distance=8", ""), 0)
    for options in found:
        for slot in range(10, 900, 30):
            layer = Layer(spec(f"budget=1{options}"), kv_heads=1, groups=1, size=8)
            layer.append(1000)
            bare = torch.randn(8, generator=torch.Generator().manual_seed(slot)).numpy()
            turned = oracles_positions.rotated(40 * bare, slot)
            layer.cache.storage.keys()[0, 0, slot] = torch.tensor(turned)
            query = oracles_positions.rotated(bare, 999 - 8)
            layer.cache.attend(torch.tensor(query).float().view(1, 1, 1, 8), layer.logits)
            found[options] += elected(layer, 0) == [[slot]]
    assert found[", distance=8"] == 30
    assert found[""] < 25


@pytest.mark.parametrize("options", ["budget=7", "budget=7, per_head=true, reuse=0.2", "budget=0.3"])
def test_a_long_life(options):
    live(spec(f"{options}, distance=9"), kv_heads=3)


def test_the_copy_follows_crop_reorder_and_restart():
    """After all of that, a step elects what a fresh layer elects of the same tokens."""
    layer = Layer(spec("budget=5, distance=9"), batch=2, padding=[0, 7], size=8)
    layer.append(40)

    def steps(count):
        for _ in range(count):
            layer.append(1)
            layer.attend()
            for row in range(layer.keys.shape[0]):
                assert elected(layer, row) == expected(layer, row, 5, 9, per_head=False)

    steps(2)
    layer.crop(33)
    layer.append(6)
    steps(2)
    layer.reorder([1, 0, 1])
    steps(2)
    state, indexed = layer.cache.state(), layer.cache.indexed
    layer.cache = Recipe.parse(spec("budget=5, distance=9")).layers(1)[0]
    layer.cache.restore({name: tensor.clone() for name, tensor in state.items()}, indexed)
    layer.cache.observe(layer._observe)
    steps(2)


def test_the_copy_is_counted():
    layer = Layer(spec("budget=5, distance=9"), size=8)
    layer.append(40)
    before = layer.cache.footprint.device
    layer.append(1)
    layer.attend()
    assert layer.cache.footprint.device - before >= 41 * 2 * 8 * 4


@pytest.mark.parametrize("distance", [WINDOW - 1, -5, 2.5, True])
def test_distances_that_are_none(distance):
    with pytest.raises(SpecError, match="distance"):
        Recipe.parse(spec(f"budget=5, distance={distance}"))
