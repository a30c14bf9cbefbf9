import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.core.budget import Budget
from keyhole.selection import Vote, VoteSelector
from tests import oracles, oracles_pages
from tests.lives import live
from tests.steps import make_step


def problem(tokens, groups, *, batch=1, heads=2, size=8, seed=0, budget=9, first=None, last=None):
    generator = torch.Generator().manual_seed(seed)
    query = 3 * torch.randn(batch, heads * groups, size, generator=generator)
    keys = torch.randn(batch, heads, tokens, size, generator=generator)
    anchor = torch.randn(batch, heads * groups, generator=generator)
    first, last = first or [0] * batch, last or tokens
    return make_step(query, keys, first, last, anchor, Budget(tokens=budget))


def elected(vote, step, row=0):
    selection = vote.elect(step)
    return [
        slots[:count].tolist()
        for slots, count in zip(selection.slots[row], selection.counts[row], strict=True)
    ]


@settings(max_examples=40)
@given(
    st.integers(1, 6), st.integers(1, 3), st.booleans(), st.booleans(), st.integers(0, 99), st.integers(1, 50)
)
def test_the_most_voted_for(groups, heads, per_head, scaled, seed, budget):
    step = problem(41, groups, batch=2, heads=heads, seed=seed, budget=budget, first=[0, 13], last=39)
    for row, first in enumerate([0, 13]):
        arrays = oracles.array(step.query[row]), oracles.array(step.storage.keys()[row])
        votes = oracles_pages.soft_votes(*arrays, first, 39, scale=8**-0.5 if scaled else 1.0)
        np.testing.assert_allclose(votes.sum(), heads * groups)
        votes = votes.reshape(heads, groups, -1).sum(1)
        votes = votes if per_head else votes.sum(0, keepdims=True).repeat(heads, 0)
        for head, found in enumerate(elected(Vote(per_head=per_head, scaled=scaled), step, row)):
            best = oracles.top_k(votes[head], budget)
            assert found == sorted(first + n for n in best) or _near_tie(votes[head], found, first, budget)


def _near_tie(votes, found, first, budget):
    """Votes that float32 cannot tell apart may be taken for one another."""
    least = np.sort(votes)[-min(budget, len(votes))]
    return len(found) == min(budget, len(votes)) and all(
        votes[n - first] >= least * (1 - 1e-4) for n in found
    )


@pytest.mark.parametrize("groups", [2, 4, 7])
def test_a_query_head_votes_by_its_own_kv_head(groups):
    """Head h reads KV head h // G; by h modulo the KV heads another token would win."""
    keys, query = torch.zeros(1, 2, 20, 4), torch.zeros(1, 2 * groups, 4)
    keys[0, 0, 5, 0] = keys[0, 1, 11, 1] = 50.0
    query[0, :groups, 0], query[0, groups:, 1] = 1.0, 1.0
    step = make_step(query, keys, [0], 20, torch.zeros(1, 2 * groups), Budget(tokens=2))
    assert elected(Vote(per_head=False, scaled=True), step) == [[5, 11]] * 2
    step = step._replace(budget=Budget(tokens=1))
    assert elected(Vote(per_head=True, scaled=True), step) == [[5], [11]]


def test_votes_are_counted_in_float32():
    """In bfloat16 most weak votes are ties, and their order is arbitrary."""
    keys = torch.zeros(1, 1, 512, 4, dtype=torch.bfloat16)
    keys[0, 0, :, 0] = torch.arange(512) // 2 / 256
    query = torch.zeros(1, 2, 4, dtype=torch.bfloat16)
    query[..., 0] = 0.25
    step = make_step(query, keys, [0], 512, torch.zeros(1, 2), Budget(tokens=6), scale=1.0)
    assert elected(Vote(per_head=False, scaled=True), step) == [list(range(506, 512))]


@pytest.mark.parametrize("scaled", [True, False])
def test_mass_is_of_attention_whatever_the_votes(scaled):
    step = problem(60, 3, budget=12)
    selection = Vote(per_head=True, scaled=scaled).elect(step)
    logits = oracles.exact_logits(
        oracles.array(step.query[0]), oracles.array(step.storage.keys()[0]), scale=8**-0.5
    )
    shares, fixed = oracles.group_shares(logits, oracles.array(step.anchor_lse[0])[:, None], 2)
    for head in range(2):
        slots = selection.slots[0, head].tolist()
        assert float(selection.mass[0, head]) == pytest.approx(
            shares[head, slots].sum() + fixed[head], rel=1e-4
        )


def test_a_row_in_which_nothing_competes():
    step = problem(40, 2, batch=2, first=[0, 40], last=30)
    selection = Vote(per_head=False, scaled=True).elect(step)
    assert selection.counts.tolist() == [[9, 9], [0, 0]]
    assert selection.mass[1].tolist() == [1.0, 1.0]


def walk(selector, queries, tokens=60):
    """The slots of a step for each query, over one set of keys."""
    step = problem(tokens, 2, batch=queries[0].shape[0])
    selector.build(step.storage.keys(), step.regions)
    return [selector.select(step._replace(query=query)) for query in queries]


def turned(angle):
    """A query in a plane, heads alike."""
    query = torch.zeros(1, 4, 8)
    query[..., 0], query[..., 1] = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    return 9 * query


def test_reuse_compares_with_the_query_that_elected():
    """Steps of 20 degrees: each is like the one before, the third is not like the first."""
    selector = VoteSelector(Vote(per_head=False, scaled=True), reuse=0.9)
    queries = [turned(angle) for angle in (0, 20, 40, 60, 20)]
    found = walk(selector, queries)
    fresh = walk(VoteSelector(Vote(per_head=False, scaled=True)), queries)
    for step, source in enumerate([0, 0, 2, 2, 2]):
        assert found[step].slots.tolist() == fresh[source].slots.tolist()
    assert fresh[0].slots.tolist() != fresh[1].slots.tolist()


def test_reuse_of_one_elects_always():
    selector = VoteSelector(Vote(per_head=False, scaled=True), reuse=1.0)
    found = walk(selector, [turned(0), turned(0)])
    assert found[0] is not found[1]


def test_rows_are_kept_for_themselves():
    vote = Vote(per_head=False, scaled=True)
    still, moving = (
        [turned(angle) for angle in (0, 5, 10)],
        [turned(angle) for angle in (0, 90, 180)],
    )
    queries = [torch.cat(pair) for pair in zip(still, moving, strict=True)]
    found, fresh = walk(VoteSelector(vote, reuse=0.9), queries), walk(VoteSelector(vote), queries)
    for step in range(3):
        assert found[step].slots[0].tolist() == fresh[0].slots[0].tolist()
        assert found[step].slots[1].tolist() == fresh[step].slots[1].tolist()


def test_what_is_reused_costs_nothing_and_survives_a_restart():
    selector = VoteSelector(Vote(per_head=False, scaled=True), reuse=0.5)
    step = problem(60, 2, batch=2, last=50)
    selector.build(step.storage.keys(), step.regions)
    first = selector.select(step)
    assert selector.bytes_read(step) == 50 * 8 * 4
    other = VoteSelector(Vote(per_head=False, scaled=True), reuse=0.5)
    other.restore({name: tensor.clone() for name, tensor in selector.state().items()}, 60)
    other.reorder(torch.tensor([1, 0, 1]))
    query = step.query[[1, 0, 1]]
    again = other.select(step._replace(query=query))
    assert again.slots.tolist() == first.slots[[1, 0, 1]].tolist()
    assert other.bytes_read(step) == 0
    other.crop(50)
    assert other.state() == {}


def test_a_prompt_ends_the_reuse():
    """Its tokens may have left the window at once, and nobody has voted on them."""
    selector, step = VoteSelector(Vote(per_head=False, scaled=True), reuse=0.0), problem(60, 2, last=20)
    selector.build(step.storage.keys(), step.regions)
    selector.select(step)
    later = step._replace(regions=problem(60, 2, last=50).regions)
    fresh = selector.vote.elect(later).slots.tolist()
    assert selector.select(later).slots.tolist() != fresh
    selector.see(step.query.unsqueeze(2), 2, 60)
    assert selector.select(later).slots.tolist() == fresh


@pytest.mark.parametrize(
    "options",
    ["budget=7, per_head=true", "budget=7, scaled_vote=false", "budget=7, reuse=0.2", "mass=0.8, floor=2"],
)
def test_a_long_life(options):
    live(f"tokenselect({options}, sinks=3, window=5, dense_below=0)", kv_heads=3)


def test_what_has_left_the_window_waits_for_an_election():
    """The price of reuse: the key that answers every query is missed until the query turns."""
    selector, keys = VoteSelector(Vote(per_head=False, scaled=True), reuse=0.5), torch.zeros(1, 2, 60, 8)
    keys[:, :, 50, :2] = 9.0
    read = []
    for angle, last in ((0, 45), (10, 55), (90, 55)):
        step = make_step(turned(angle), keys, [0], last, torch.zeros(1, 4), Budget(tokens=3))
        read.append(50 in selector.select(step).slots[0, 0].tolist())
    assert read == [False, False, True]
