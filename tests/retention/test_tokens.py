"""Which of the tokens that compete are kept."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keyhole.retention import BestOfLayer, BestTokens
from keyhole.storage import Chosen


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
    assert chosen.meant().all()
