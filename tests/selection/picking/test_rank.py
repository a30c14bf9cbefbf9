import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.core.budget import Budget
from keyhole.selection.picking.rank import group_probabilities, pick
from tests import oracles
from tests.steps import make_step


def step_of(anchor, first, last, budget, tokens):
    """A step of which only what `pick` looks at is real."""
    batch, kv_heads, groups = anchor.shape
    keys = torch.empty(batch, kv_heads, tokens, 1)
    return make_step(torch.empty(batch, kv_heads * groups, 1), keys, first, last, anchor.flatten(1), budget)


def chosen(selection, row, head):
    count = int(selection.counts[row, head])
    slots = selection.slots[row, head, :count].tolist()
    assert slots == sorted(set(slots)), "slots must be ascending and distinct"
    return slots


@st.composite
def problems(draw):
    batch, kv_heads, groups = draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, 8))
    tokens = draw(st.sampled_from([1, 2, 5, 31, 63]))
    last = draw(st.integers(0, tokens))
    first = [draw(st.integers(0, tokens)) for _ in range(batch)]
    spread = draw(st.sampled_from([0.0, 0.1, 1.0, 10.0, 200.0]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    logits = (torch.randn(batch, kv_heads, groups, tokens, generator=generator) * spread).round(decimals=3)
    logits[..., last:] = torch.nan  # nobody may look at what does not compete
    anchor = torch.randn(batch, kv_heads, groups, generator=generator) * spread
    return logits, anchor, first, last


def expected(logits, anchor, first, last, row):
    heads = logits.shape[1]
    ranked = oracles.array(logits[row].flatten(0, 1))[:, first[row] : last]
    return oracles.group_shares(ranked, oracles.array(anchor[row].reshape(-1, 1)), heads)


@given(problems())
def test_shares_are_softmax_then_mean(problem):
    logits, anchor, first, last = problem
    step = step_of(anchor, first, last, Budget(tokens=1), logits.shape[-1])
    shares, anchored = group_probabilities(logits, step)
    for row in range(len(first)):
        truth, fixed = expected(*problem, row)
        np.testing.assert_allclose(shares[row, :, first[row] : last], truth, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(anchored[row], fixed, rtol=1e-4, atol=1e-7)
        outside = [n for n in range(logits.shape[-1]) if not first[row] <= n < last]
        assert bool((shares[row][:, outside] == 0).all())


@settings(max_examples=100)
@given(problems(), st.integers(1, 70))
def test_picks_the_greatest_shares(problem, limit):
    logits, anchor, first, last = problem
    step = step_of(anchor, first, last, Budget(tokens=limit), logits.shape[-1])
    selection = pick(logits, step)
    shares, anchored = group_probabilities(logits, step)
    for row in range(len(first)):
        candidates = list(range(first[row], last))
        for head in range(logits.shape[1]):
            # The library's own float32 shares, so that ties and near-ties are judged as it sees them.
            scores = shares[row, head].tolist()
            best = oracles.top_k([scores[n] for n in candidates], limit)
            assert chosen(selection, row, head) == sorted(candidates[n] for n in best)
            mass = sum(scores[candidates[n]] for n in best) + float(anchored[row, head])
            assert float(selection.mass[row, head]) == pytest.approx(mass, abs=1e-5)


@settings(max_examples=100)
@given(
    problems(),
    st.sampled_from([0.01, 0.5, 0.9, 0.999, 1.0]),
    st.sampled_from([0, 1, 16, 100]),
    st.sampled_from([0.05, 0.5, 1.0]),
)
def test_picks_the_fewest_that_reach_the_mass(problem, target, floor, cap):
    logits, anchor, first, last = problem
    tokens = logits.shape[-1]
    budget = Budget(mass=target, floor=floor, cap=cap)
    selection = pick(logits, step_of(anchor, first, last, budget, tokens))
    for row in range(len(first)):
        truth, fixed = expected(*problem, row)
        for head in range(logits.shape[1]):
            bounds = [
                len(oracles.fewest_for_mass(truth[head], fixed[head], near, floor, budget.limit(tokens)))
                for near in (target - 1e-5, target + 1e-5)
            ]
            assert bounds[0] <= int(selection.counts[row, head]) <= bounds[1]


def test_ties_go_to_the_lower_slot():
    step = step_of(torch.zeros(1, 1, 2), [3], 40, Budget(tokens=5), 50)
    assert chosen(pick(torch.zeros(1, 1, 2, 50), step), 0, 0) == [3, 4, 5, 6, 7]


def test_shares_that_underflow_still_precede_what_does_not_compete():
    logits = torch.full((1, 1, 1, 20), -1e4)
    step = step_of(torch.zeros(1, 1, 1), [4], 15, Budget(tokens=8), 20)
    assert chosen(pick(logits, step), 0, 0) == list(range(4, 12))


def test_a_head_with_large_logits_does_not_outvote_its_siblings():
    """One head is sure of slot 0, three agree on slot 1 with smaller logits: a sum of logits would pick 0."""
    logits = torch.tensor([[50.0, 0.0], [0.0, 5.0], [0.0, 5.0], [0.0, 5.0]]).view(1, 1, 4, 2)
    step = step_of(torch.zeros(1, 1, 4), [0], 2, Budget(tokens=1), 2)
    assert chosen(pick(logits, step), 0, 0) == [1]


def test_what_is_read_anyway_weighs_the_heads():
    """The first head spends its mass on the window; with that in the denominator the second decides."""
    logits = torch.tensor([[3.0, 0.0], [0.0, 1.0]]).view(1, 1, 2, 2)
    alone = step_of(torch.full((1, 1, 2), -math.inf), [0], 2, Budget(tokens=1), 2)
    busy = step_of(torch.tensor([[[20.0, -math.inf]]]), [0], 2, Budget(tokens=1), 2)
    assert chosen(pick(logits, alone), 0, 0) == [0]
    assert chosen(pick(logits, busy), 0, 0) == [1]


def test_mass_that_is_there_already_needs_no_token():
    step = step_of(torch.full((1, 1, 2), 30.0), [0], 9, Budget(mass=0.9, floor=0), 9)
    selection = pick(torch.zeros(1, 1, 2, 9), step)
    assert selection.counts.tolist() == [[0]]
    assert float(selection.mass) == pytest.approx(1.0)


@given(problems(), st.integers(0, 8))
def test_more_mass_reads_more(problem, floor):
    logits, anchor, first, last = problem
    counts = []
    for target in (0.1, 0.5, 0.9, 0.99, 1.0):
        budget = Budget(mass=target, floor=floor)
        counts.append(pick(logits, step_of(anchor, first, last, budget, logits.shape[-1])).counts)
    for fewer, more in itertools.pairwise(counts):
        assert bool((fewer <= more).all())


def test_rows_choose_for_themselves():
    logits = torch.arange(20.0).expand(2, 1, 1, 20).clone()
    logits[1] = logits[1].flip(-1)
    selection = pick(logits, step_of(torch.zeros(2, 1, 1), [0, 10], 15, Budget(tokens=2), 20))
    assert [chosen(selection, row, 0) for row in range(2)] == [[13, 14], [10, 11]]
