"""Clusters in two levels, against the formulae: which are read depends on scores, how many on lengths."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.core.budget import Budget
from keyhole.selection import ClusterSelector
from tests import oracles
from tests import oracles_eviction_mpcache as formulae
from tests.lives import live
from tests.steps import competing, make_step


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def built(keys, first, *, fine=2, coarse=6, share=0.5, alpha=0.6, cut=None):
    """A selector that was given the keys in two pieces, as its owner does: again from what it has not."""
    selector = ClusterSelector(fine, coarse, share, alpha)
    cut = cut or keys.shape[2]
    selector.build(keys[:, :, :cut], competing(first, cut, cut))
    selector.append(keys[:, :, selector.length :])
    return selector


def slots_of(selection, row, head):
    return selection.slots[row, head, : selection.counts[row, head]].tolist()


def select(selector, query, keys, first, last, budget, **how):
    step = make_step(query, keys, first, last, torch.zeros(query.shape[:2]), Budget(tokens=budget), **how)
    return selector.select(step), selector.bytes_read(step)


@settings(max_examples=60)
@given(
    st.sampled_from([(1, 1), (1, 4), (2, 6), (4, 4), (3, 12)]),
    st.sampled_from([13, 31, 63, 100]),
    st.integers(1, 4),
    st.integers(1, 70),
    st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    st.sampled_from([0.0, 0.5, 0.6, 1.0]),
    st.data(),
)
def test_what_is_read_is_what_the_formulae_read(sizes, tokens, groups, budget, share, alpha, data):
    fine, coarse = sizes
    # Whatever of a coarse cluster is missing lies within the window, as far as that reaches.
    last = data.draw(st.integers(coarse, tokens))
    first = [data.draw(st.integers(0, last - 1)) for _ in range(2)]
    keys = draw(2, 2, tokens, 8, seed=tokens + budget)
    query = draw(2, 2 * groups, 8, seed=budget)
    cut = data.draw(st.integers(1, tokens))
    selector = built(keys, first, fine=fine, coarse=coarse, share=share, alpha=alpha, cut=cut)
    assert selector.length == tokens // coarse * coarse
    selection, _ = select(selector, query, keys, first, last, budget)
    for row, start in enumerate(first):
        wanted = formulae.read(
            oracles.array(query[row]),
            oracles.array(keys[row]),
            first=start,
            last=last,
            fine=fine,
            coarse=coarse,
            share=share,
            alpha=alpha,
            budget=budget,
        )
        for head, (slots, survivors) in enumerate(wanted):
            assert slots_of(selection, row, head) == slots
            assert len(slots) == min(budget, last - start)
            assert {slot // coarse for slot in slots} <= set(survivors)
            assert 0 < float(selection.mass[row, head]) <= 1 + 1e-5


def test_a_cluster_is_scored_by_its_middle_at_one_half():
    keys, query = draw(1, 1, 64, 8), draw(1, 1, 8, seed=1)
    selector = built(keys, [0], fine=8, coarse=8, alpha=0.5)
    points = selector.state()["coarse"][0, 0]
    boxes = keys[0, 0].unflatten(0, (-1, 8))
    torch.testing.assert_close(points, (boxes.amax(1) + boxes.amin(1)) / 2)
    scores = points @ query[0, 0]
    selection, _ = select(selector, query, keys, [8], 64, 8)
    best = int(scores[1:].argmax()) + 1
    assert slots_of(selection, 0, 0) == list(range(best * 8, best * 8 + 8))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.6, 1.0])
def test_points_lie_in_their_boxes(alpha):
    """So that no score is above the bound of the box, which no key's is above either."""
    keys = draw(2, 3, 96, 8)
    held = built(keys, [0, 0], fine=4, coarse=12, alpha=alpha).state()
    for name, size in (("fine", 4), ("coarse", 12)):
        boxes = keys.unflatten(2, (-1, size))
        high, low = boxes.amax(3), boxes.amin(3)
        assert (held[name] <= high + 1e-6).all()
        assert (held[name] >= low - 1e-6).all()
        query = draw(8, seed=2)
        bound = torch.maximum(query * high, query * low).sum(-1)
        assert (bound + 1e-5 >= (boxes @ query).amax(-1)).all()
        assert (bound + 1e-5 >= held[name] @ query).all()


@pytest.mark.parametrize("share", [0.99, 1.0])
def test_coarse_clusters_are_only_held_where_they_rule_some_out(share):
    """Nearly all of them rule out as little, and cost a point and a product each."""
    keys, query = draw(2, 2, 96, 8), draw(2, 4, 8, seed=1)
    selector = built(keys, [0, 3], fine=2, coarse=12, share=share)
    selection, read = select(selector, query, keys, [0, 3], 90, 30)
    levels = {"fine": 48} | ({"coarse": 8} if share < 1 else {})
    assert {name: points.shape[2] for name, points in selector.state().items() if name != "first"} == levels
    assert read == (45 + levels.get("coarse", 0)) * 8 * 4  # 90 tokens are before the window
    both = select(built(keys, [0, 3], fine=2, coarse=12, share=0.99), query, keys, [0, 3], 90, 30)[0]
    assert torch.equal(selection.slots, both.slots)


def test_a_group_asks_by_the_sum_of_its_queries():
    keys, query = draw(1, 2, 90, 8), draw(1, 8, 8, seed=1)
    summed = query.unflatten(1, (2, 4)).sum(2)
    found, alone = (select(built(keys, [2]), each, keys, [2], 80, 20)[0] for each in (query, summed))
    assert torch.equal(found.slots, alone.slots)


@pytest.mark.parametrize("tokens", [40, 63, 95])
def test_counts_and_bytes_depend_on_lengths_alone(tokens):
    """Random keys, keys all alike, huge ones, NaN queries: as many are read, by as many products."""
    shape = (2, 2, tokens, 8)
    cases = [draw(*shape), draw(*shape, seed=9), torch.ones(shape), torch.zeros(shape), 1e4 * draw(*shape)]
    told = set()
    for index, keys in enumerate(cases):
        for query in (draw(2, 4, 8, seed=index), torch.zeros(2, 4, 8), torch.full((2, 4, 8), torch.nan)):
            selection, read = select(built(keys, [3, 20]), query, keys, [3, 20], tokens - 4, 11)
            told.add((tuple(selection.counts.flatten().tolist()), read))
    assert len(told) == 1


def test_ties_go_to_the_lower_cluster():
    """On a coarse grid, as fixed point numbers make it, many clusters are worth the same."""
    keys, query = torch.zeros(1, 1, 60, 8), draw(1, 2, 8)
    selection, _ = select(built(keys, [0]), query, keys, [0], 60, 12)
    assert slots_of(selection, 0, 0) == list(range(12))
    grid = (draw(1, 1, 60, 8) * 4).round() / 4
    query = (draw(1, 2, 8, seed=1) * 4).round() / 4
    selection, _ = select(built(grid, [2]), query, grid, [2], 57, 15)
    wanted = formulae.read(
        *map(oracles.array, (query[0], grid[0])),
        first=2, last=57, fine=2, coarse=6, share=0.5, alpha=0.6, budget=15,
    )  # fmt: skip
    assert slots_of(selection, 0, 0) == wanted[0][0]


def test_first_and_ragged_clusters_are_always_read():
    """Slots 2 to 5 are of the first cluster, 60 to 61 in none yet; nothing asks for them."""
    keys = draw(1, 1, 62, 8)
    query = draw(1, 1, 8, seed=1)
    keys[0, 0, :6] = keys[0, 0, 60:] = -100 * query[0, 0]
    selection, _ = select(built(keys, [2]), query, keys, [2], 62, 8)
    assert {2, 3, 60, 61} - set(slots_of(selection, 0, 0)) <= {2, 3}
    selection, _ = select(built(keys, [1]), query, keys, [1], 62, 10)
    assert {1, 60, 61} <= set(slots_of(selection, 0, 0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    keys, query = draw(2, 2, 100, 16).to(dtype), draw(2, 4, 16, seed=1).to(dtype)
    selector = built(keys, [2, 50], fine=4, coarse=8)
    assert selector.state()["fine"].dtype == dtype
    selection, _ = select(selector, query, keys, [2, 50], 90, 20)
    assert selection.counts.tolist() == [[20, 20], [20, 20]]
    assert torch.isfinite(selection.mass).all()


@pytest.mark.parametrize("options", ["fine=3, coarse=9", "fine=1, coarse=1", "fine=16, coarse=16"])
@pytest.mark.parametrize("window", [1, 30])
@pytest.mark.parametrize("survivors", [0.0, 0.5, 1.0])
def test_a_long_life(options, window, survivors):
    more = f"window={window}, survivors={survivors}, budget=9, sinks=3, dense_below=0"
    live(f"mpcache(keep=1.0, {options}, {more})", kv_heads=3, softcap=5.0)


def test_a_crop_leaves_what_was_there():
    """Clusters that were cut are given up, and come back the same."""
    keys = draw(2, 2, 95, 8)
    whole, cropped = built(keys, [3, 9]), built(keys, [3, 9])
    for length in (80, 79, 6, 5):
        cropped.crop(length)
        assert cropped.length == length // 6 * 6
        cropped.append(keys[:, :, cropped.length :])
        for name, tensor in whole.state().items():
            assert torch.equal(tensor, cropped.state()[name])
