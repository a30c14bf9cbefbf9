"""ShadowKV's selector beside a brute-force oracle."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.attention import Logits
from keyhole.core.budget import Budget
from keyhole.core.layout import regions
from keyhole.selection import LandmarkSelector, Step
from keyhole.storage.chunks import outlier_chunks
from tests import oracles, oracles_shadowkv
from tests.layers import Layer, slots_read
from tests.steps import stored

CPU = torch.device("cpu")


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def shapes(draw_):
    tokens = draw_(st.sampled_from([5, 31, 63]))
    return {
        "tokens": tokens,
        "padding": draw_(st.lists(st.integers(0, tokens - 1), min_size=1, max_size=3)),
        "heads": draw_(st.integers(1, 2)),
        "groups": draw_(st.integers(1, 4)),
        "chunk": draw_(st.sampled_from([1, 3, 8])),
        "outliers": draw_(st.sampled_from([0, 1, 4, 100])),
        "seed": draw_(st.integers(0, 99)),
    }


def keys_of(shape):
    keys = draw(len(shape["padding"]), shape["heads"], shape["tokens"], 8, seed=shape["seed"]) + 1
    for row, start in enumerate(shape["padding"]):
        keys[row, :, :start] *= 1e4
    return keys


@settings(max_examples=40)
@given(shapes(), st.integers(0, 3), st.integers(1, 5))
def test_outliers_have_the_least_cosines(shape, sinks, window):
    keys, chunk = keys_of(shape), shape["chunk"]
    parts = regions(shape["tokens"], tuple(shape["padding"]), sinks, window, CPU)
    found = outlier_chunks(keys, parts, chunk, shape["outliers"])
    for row in range(len(keys)):
        for head in range(shape["heads"]):
            mine = [number for number in found[row, head].tolist() if number >= 0]
            first = int(parts.first[row])
            every = oracles_shadowkv.outliers(oracles.array(keys[row, head]), first, parts.last, chunk, 1000)
            assert len(mine) == min(len(every), shape["outliers"])
            if chunk > 1:  # of chunks of one token all cosines are one, but for rounding
                assert mine == every[: len(mine)]


@settings(max_examples=40)
@given(shapes(), st.integers(1, 70), st.integers(1, 62))
def test_reads_outliers_then_the_chunks_of_best_landmarks(shape, limit, cut):
    keys, size, chunk, groups = keys_of(shape), 8, shape["chunk"], shape["groups"]
    query = 2 * draw(len(keys), shape["heads"] * groups, size, seed=shape["seed"] + 1)
    parts = regions(shape["tokens"], tuple(shape["padding"]), 2, 3, CPU)
    selector = LandmarkSelector(chunk, shape["outliers"])
    cut = min(cut, shape["tokens"])
    selector.build(keys[:, :, :cut], parts)
    selector.append(keys[:, :, cut:])
    selector._apart = outlier_chunks(keys, parts, chunk, shape["outliers"])  # as of the whole prompt
    step = Step(
        query, stored(keys), parts, torch.zeros(query.shape[:2]), Logits(size**-0.5), Budget(tokens=limit)
    )
    selection = selector.select(step)
    for row, start in enumerate(shape["padding"]):
        _, middle, _ = oracles.regions(start, shape["tokens"], 2, 3)
        for head in range(shape["heads"]):
            found = selection.slots[row, head, : selection.counts[row, head]].tolist()
            assert found == sorted(set(found))
            assert set(found) <= set(middle)
            assert len(found) == min(limit, len(middle))
            held = oracles.array(keys[row, head])
            group = oracles.array(query[row, head * groups : (head + 1) * groups])
            first, last = int(parts.first[row]), parts.last
            room = min(shape["outliers"], limit // (4 * chunk))
            apart = [number for number in selector._apart[row, head, :room].tolist() if number >= 0]
            scores = oracles_shadowkv.landmark_scores(group, held, first, last, chunk, apart, size**-0.5)
            scores |= dict.fromkeys(apart, 2.0)
            of_chunk = oracles_shadowkv.chunks(first, last, chunk)
            left = [number for number, slots in of_chunk.items() if not set(slots) <= set(found)]
            read = [number for number, slots in of_chunk.items() if set(slots) & set(found)]
            if left and read:
                assert min(scores[n] for n in read) >= max(scores[n] for n in left) * (1 - 1e-4) - 1e-9
            # At most one chunk is read in part, from its start.
            parts_read = [n for n in read if n in left]
            assert len(parts_read) <= 1
            for number in parts_read:
                inside = [slot for slot in found if slot // chunk == number]
                assert inside == of_chunk[number][: len(inside)]


def test_one_head_of_the_group_suffices():
    """The greatest over the group, not the mean: a chunk that one head wants beats one all want a little."""
    keys = torch.zeros(1, 1, 40, 4)
    keys[0, 0, 8:16, 0] = 4.0
    keys[0, 0, 16:24, 1] = 3.0
    query = torch.zeros(1, 4, 4)
    query[0, 0, 0] = 2.0
    query[0, 1:, 1] = 1.5
    parts = regions(40, (0,), 0, 8, CPU)
    selector = LandmarkSelector(8, 0)
    selector.build(keys, parts)
    step = Step(query, stored(keys), parts, torch.zeros(1, 4), Logits(1.0), Budget(tokens=8))
    assert selector.select(step).slots.flatten().tolist() == list(range(8, 16))


@pytest.mark.parametrize("cut", [8, 13, 21])
def test_cropped_and_grown_is_as_built(cut):
    keys = draw(1, 2, 40, 8)
    parts = regions(40, (3,), 2, 3, CPU)
    once, cropped = LandmarkSelector(4, 2), LandmarkSelector(4, 2)
    for selector in (once, cropped):
        selector.build(keys, parts)
    cropped.crop(cut)
    cropped.append(keys[:, :, cropped.length :])
    np.testing.assert_allclose(cropped.state()["summaries"], once.state()["summaries"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [41, 60, 79])
def test_outliers_that_a_crop_puts_into_the_window_are_left_to_it(length):
    """They are whole chunks of what is indexed still, but no longer behind the window."""
    layer = Layer(
        "shadowkv(mass=1.0, floor=1000, sinks=0, window=30, chunk=4, outliers=9, rank=8, dense_below=0)",
        size=8,
    )
    layer.append(100)
    layer.append(1)
    layer.attend()
    assert int(layer.cache.selector.state()["outliers"].max()) * 4 > length - 30
    layer.crop(length)
    layer.append(1)
    layer.attend()
    assert slots_read(layer) == [[list(range(length + 1))] * 2]
