"""Picking pages: order, ties, the cut at the budget, mass."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keyhole.core.budget import Budget
from keyhole.kernels.attention.pooled import page_sums
from keyhole.selection.picking.pages import page_count, pick_pages, ranked, spans
from tests import oracles, oracles_pages
from tests.steps import make_step


def step_of(first, last, budget, tokens):
    """A step of which only what picking looks at is real."""
    keys = torch.empty(len(first), 1, tokens, 1)
    return make_step(torch.empty(len(first), 1, 1), keys, first, last, torch.zeros(len(first), 1), budget)


@st.composite
def problems(draw):
    page = draw(st.sampled_from([1, 3, 16]))
    tokens = draw(st.sampled_from([1, 15, 16, 17, 63, 100]))
    last = draw(st.integers(1, tokens))
    first = [draw(st.integers(0, tokens)) for _ in range(draw(st.integers(1, 3)))]
    heads = draw(st.integers(1, 3))
    lists = draw(st.sampled_from([1, heads]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    count = -(-last // page)
    scores = torch.randn(len(first), lists, count, generator=generator)
    scores = scores.round() if draw(st.booleans()) else scores
    shares = torch.rand(len(first), heads, count, generator=generator)
    shares = shares / shares.sum(-1, keepdim=True) * 0.7
    return page, tokens, first, last, scores, shares


def slots_of(selection, row, head):
    slots = selection.slots[row, head, : selection.counts[row, head]].tolist()
    assert slots == sorted(set(slots))
    return slots


@given(problems(), st.integers(1, 120))
def test_best_pages_within_the_budget(problem, limit):
    page, tokens, first, last, scores, shares = problem
    anchored = torch.full(shares.shape[:2], 0.3)
    step = step_of(first, last, Budget(tokens=limit), tokens)
    selection = pick_pages(scores, shares, anchored, step, page)
    for row, start in enumerate(first):
        pages = oracles_pages.pages_of(start, last, page)
        for number in range(shares.shape[1]):
            found = slots_of(selection, row, number)
            rank = scores[row, number % scores.shape[1]].tolist()
            assert found == oracles_pages.read_pages(rank, pages, limit)
            assert len(found) == min(limit, max(last - start, 0))
            held = 0.3 + sum(
                float(shares[row, number, slot // page]) / len(pages[slot // page]) for slot in found
            )
            assert float(selection.mass[row, number]) == pytest.approx(held, abs=1e-5)


@given(problems(), st.sampled_from([0.2, 0.5, 0.9]), st.sampled_from([0, 5, 40]), st.sampled_from([0.1, 1.0]))
def test_fewest_pages_that_reach_the_mass(problem, target, floor, cap):
    page, tokens, first, last, scores, shares = problem
    anchored = torch.full(shares.shape[:2], 0.3)
    budget = Budget(mass=target, floor=floor, cap=cap)
    selection = pick_pages(scores, shares, anchored, step_of(first, last, budget, tokens), page)
    for row, start in enumerate(first):
        pages = oracles_pages.pages_of(start, last, page)
        wanted = []
        for head in range(shares.shape[1]):
            rank, reached, tokens_read = scores[row, head % scores.shape[1]].tolist(), 0.3, 0
            for at in sorted(pages, key=lambda at: (-rank[at], at)):
                if reached >= target - 1e-6:
                    break
                reached, tokens_read = reached + float(shares[row, head, at]), tokens_read + len(pages[at])
            wanted.append(tokens_read)
        for head in range(shares.shape[1]):
            # Where all heads have one list, it is as long as the most demanding needs.
            needed = max(wanted) if scores.shape[1] == 1 else wanted[head]
            limit = min(max(needed, floor), budget.limit(tokens))
            rank = scores[row, head % scores.shape[1]].tolist()
            assert slots_of(selection, row, head) == oracles_pages.read_pages(rank, pages, limit)


def test_no_estimate_shows_that_all_is_read():
    """Shares of zero are estimates; a mass of 1 reads them too."""
    step = step_of([0], 64, Budget(mass=1.0), 64)
    selection = pick_pages(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4), torch.ones(1, 1), step, 16)
    assert selection.counts.tolist() == [[64]]


@given(
    st.lists(
        st.sampled_from([0.0, -0.0, 1.0, -torch.inf, torch.inf, torch.nan, 2.5]), min_size=1, max_size=40
    ),
    st.data(),
)
def test_ranked_like_a_stable_sort_with_nan_last(values, data):
    most = data.draw(st.integers(1, len(values)))
    scores = torch.tensor([values, values[::-1]])
    for row, found in zip(scores.tolist(), ranked(scores, most).tolist(), strict=True):
        assert found == oracles.top_k([-float("inf") if v != v else v for v in row], most)


@pytest.mark.parametrize(("last", "page"), [(0, 16), (1, 16), (16, 16), (17, 16), (7, 1)])
def test_pages_of_a_length(last, page):
    step = step_of([0, 3], last, Budget(tokens=1), 20)
    begins, sizes = spans(step.regions, page)
    assert begins.shape == sizes.shape == (2, page_count(step.regions, page))
    assert sizes.sum(-1).tolist() == [last, max(last - 3, 0)]
    assert page_sums(torch.ones(2, last), page).sum(-1).tolist() == [last, last]
