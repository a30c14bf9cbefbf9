"""Priority samples against the paper's formulas, and sums by them over many draws."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.selection.sampled.draw import Priorities
from tests.oracles_sampled import drawn


def chances(shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).clamp(min=2**-24)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 9), st.booleans())
def test_samples_are_the_papers(tokens, count, seed, equal):
    random = torch.Generator().manual_seed(seed)
    weights = torch.randn(2, 1, tokens, generator=random).exp() if not equal else torch.ones(2, 1, tokens)
    competes = torch.rand(2, 1, tokens, generator=random) < 0.8
    chance = chances(weights.shape, seed)
    counts = competes.sum(-1).clamp(max=count)
    sample = Priorities(weights, competes, chance, int(counts.max())).sample(counts)
    for row in range(2):
        candidates = competes[row, 0].nonzero().flatten().tolist()
        numbers = (tensor[row, 0].double().numpy() for tensor in (weights, chance))
        read, certain = drawn(*numbers, candidates, int(counts[row, 0]))
        slots = sample.slots[row, 0, : int(counts[row, 0])].tolist()
        assert slots == sorted(read)
        unread = sample.unread[row, 0].double().numpy()
        np.testing.assert_allclose(
            1 / (1 + unread[: len(slots)]), [certain[slot] for slot in slots], rtol=1e-5
        )
        assert not unread[len(slots) :].any()
        if count:
            odds = 1 / (1 + sample.odds[row, 0].double().numpy())
            np.testing.assert_allclose(odds[candidates], [certain[each] for each in candidates], rtol=1e-5)


def test_nothing_is_left_where_all_is_read():
    weights, competes = torch.rand(1, 3, 50), torch.ones(1, 1, 50, dtype=torch.bool)
    sample = Priorities(weights, competes, chances(weights.shape), 50).sample(torch.full((1, 3), 50))
    assert sample.slots.tolist() == [[list(range(50))] * 3]
    assert not sample.unread.any()


def test_weights_that_are_no_numbers_come_last():
    weights = torch.tensor([[[1.0, torch.nan, 2.0, 0.0, torch.inf]]])
    competes = torch.ones(1, 1, 5, dtype=torch.bool)
    sample = Priorities(weights, competes, torch.ones(1, 1, 5), 5).sample(torch.tensor([[3]]))
    assert sample.slots[0, 0].tolist() == [0, 2, 4]


def test_sums_are_unbiased():
    """10,000 draws of 12 among 60 tokens, of weights with heavy tails, that are estimated badly."""
    random = torch.Generator().manual_seed(5)
    weights = (1.5 * torch.randn(60, generator=random)).exp()
    counted = weights * torch.randn(60, generator=random).exp()
    draws, competes = 10_000, torch.ones(1, 1, 60, dtype=torch.bool)
    rows = Priorities(weights.expand(1, draws, 60), competes, chances((1, draws, 60)), 12)
    sample = rows.sample(torch.full((1, draws), 12))
    sums = ((1 + sample.unread) * counted[sample.slots.long()]).sum(-1).double()[0]
    assert abs(float(sums.mean() - counted.sum())) < 3.3 * float(sums.std()) / draws**0.5
    # And so is their spread, as samples show it.
    shown = (sample.unread * (1 + sample.unread) * counted[sample.slots.long()].square()).sum(-1).double()[0]
    assert abs(float(shown.mean()) / float(sums.var()) - 1) < 0.1
