"""Which tokens are picked by their worth, and how budgets are shared out."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keyhole.core.budget import Budget
from keyhole.core.model_info import ModelInfo
from keyhole.methods import Recipe
from keyhole.retention import BestOfLayer, BestTokens, Equal, EvictionPolicy, Pyramid
from keyhole.storage import Chosen


def draw(seed, batch=2, heads=3, slots=30, levels=7):
    """Scores with many ties, and what competes."""
    random = np.random.default_rng(seed)
    scores = torch.tensor(random.integers(0, levels, (batch, heads, slots))).float()
    first = torch.tensor(random.integers(0, slots // 2, (batch, heads, 1)))
    place = torch.arange(slots)
    return scores, (place >= first) & (place < slots - 4)


@given(st.integers(0, 99), st.lists(st.integers(0, 40), min_size=2, max_size=2))
def test_the_best_of_each_head(seed, room):
    scores, competing = draw(seed)
    picked = BestTokens().pick(scores, competing, torch.tensor(room))
    for row in range(2):
        for head in range(3):
            slots = [s for s in range(30) if competing[row, head, s]]
            best = sorted(slots, key=lambda s: (-scores[row, head, s], s))[: room[row]]
            assert picked[row, head].nonzero().flatten().tolist() == sorted(best)


@given(st.integers(0, 99), st.lists(st.integers(0, 40), min_size=2, max_size=2), st.floats(0, 1))
def test_heads_share_what_a_layer_has(seed, room, floor):
    scores, competing = draw(seed)
    picked = BestOfLayer(floor).pick(scores, competing, torch.tensor(room))
    assert not (picked & ~competing).any()
    available = competing.sum(-1)
    for row in range(2):
        assert int(picked[row].sum()) == min(3 * room[row], int(available[row].sum()))
        for head in range(3):
            least = min(int(floor * room[row] * (1 - 1e-6)), int(available[row, head]))
            assert int(picked[row, head].sum()) >= least
            kept = scores[row, head][picked[row, head]]
            lost = scores[row, head][competing[row, head] & ~picked[row, head]]
            assert not len(kept) or not len(lost) or kept.min() >= lost.max()


def test_a_head_whose_worth_is_spread_keeps_more():
    scores = torch.stack([torch.full((100,), 2.0), torch.cat([torch.full((3,), 9.0), torch.zeros(97)])])
    picked = BestOfLayer(0.2).pick(scores[None], torch.ones(1, 2, 100, dtype=torch.bool), torch.tensor([20]))
    # 3 and 37 of 40 by worth alone; each has a fifth of 20 for sure, and four fifths of its own.
    assert picked.sum(-1).tolist() == [[34, 6]]
    assert picked[0, 1, :3].all()


@pytest.mark.parametrize("layers", [1, 2, 5, 32])
@pytest.mark.parametrize(("average", "context"), [(512, 100_000), (512, 513), (500, 1000), (512, 512)])
def test_a_pyramid_keeps_its_sum_and_asks_for_no_more_than_there_is(layers, average, context):
    keepings = [
        retention.policy for retention in Recipe.parse("pyramidkv").stages[0].retention(ModelInfo.of(layers))
    ]
    kept = [policy.share.of(average, context) for policy in keepings]
    assert kept == sorted(kept, reverse=True)
    assert max(kept) <= context
    assert abs(sum(kept) - layers * average) <= layers


def test_the_published_slope():
    kept = [Pyramid(layer / 31, 1 / 20).of(2048, 10**6) for layer in range(32)]
    assert (kept[0], kept[-1]) == (round(2048 * 1.95), round(2048 / 20))


def test_what_is_always_kept_is_the_least_that_is_kept():
    policy = EvictionPolicy(Budget(tokens=5), Equal(), sinks=4, window=32, every=0, whole_prompt=False)
    assert policy.limit(1000) == 36


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 40), st.integers(1, 5), st.integers(0, 99))
def test_the_worst_is_what_is_not_picked(batch, heads, slots, values, seed):
    """With ties, of which the higher slot goes."""
    make = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, values, (batch, heads, slots), generator=make).float()
    competing = torch.ones(batch, heads, slots, dtype=torch.bool)
    picked = BestTokens().pick(scores, competing, torch.full((batch,), slots - 1))
    expected = (~picked).int().argmax(-1)
    worst = BestTokens().worst(scores)
    assert torch.equal(worst, expected)
    assert (picked.sum(-1) == slots - 1).all()


def test_heads_that_share_a_budget_have_no_worst():
    assert BestOfLayer(0.2).worst(torch.zeros(1, 2, 9)) is None


@pytest.mark.parametrize("slots", [2, 3, 17])
def test_all_slots_but_one(slots):
    gone = torch.tensor([[0, slots - 1, slots // 2]])
    chosen = Chosen.without(gone, slots)
    for head, slot in enumerate(gone[0].tolist()):
        assert chosen.aligned()[0, head].tolist() == [each for each in range(slots) if each != slot]
    assert chosen.valid_mask().all()
