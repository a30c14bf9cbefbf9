import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.attention import Logits
from keyhole.core.budget import Budget
from keyhole.core.layout import regions
from keyhole.methods import Recipe
from keyhole.selection import SharedPageSelector, Step
from keyhole.selection.shared import Board, Role
from tests import oracles, oracles_pages
from tests.layers import Layer
from tests.lives import live
from tests.steps import stored

CPU = torch.device("cpu")


def pair(page=4):
    """A leader, and one that follows it."""
    board = Board()
    return SharedPageSelector(Role.LEADER, board, page), SharedPageSelector(Role.FOLLOWER, board, page)


class Case:
    """A step of a leading layer with its own keys."""

    def __init__(self, tokens, *, padding=(0,), groups=2, heads=2, size=8, seed=0, sinks=3, window=5, **how):
        generator = torch.Generator().manual_seed(seed)
        shape = len(padding), heads, tokens, size
        self.keys = torch.randn(shape, generator=generator)
        for row, unused in zip(self.keys, padding, strict=True):
            row[:, :unused] *= 1e4
        self.query = 3 * torch.randn(len(padding), heads * groups, size, generator=generator)
        self.parts = regions(tokens, tuple(padding), sinks, window, CPU)
        self.logits = Logits(size**-0.5, **how)

    def lead(self, selector):
        selector.watch(self.query, stored(self.keys), self.parts, self.logits)

    def step(self, budget):
        """As a following layer sees it: its query and anchor have no say."""
        anchor = torch.zeros(self.query.shape[:2])
        return Step(-self.query, stored(self.keys), self.parts, anchor, self.logits, budget)

    def expected(self, row, page, budget):
        start, first = self.parts.padding[row], int(self.parts.first[row])
        pages = oracles_pages.pages_of(first, self.parts.last, page)
        arrays = oracles.array(self.query[row]), oracles.array(self.keys[row])
        sinks = None if self.logits.sink_logits is None else oracles.array(self.logits.sink_logits)
        how = {"scale": self.logits.scale, "softcap": self.logits.softcap, "sink_logits": sinks}
        scores = oracles_pages.delta_scores(*arrays, pages, start, **how)
        return oracles_pages.read_pages(scores, pages, budget)


def lists(selection, row):
    """The slots of each KV head."""
    heads = zip(selection.slots[row], selection.counts[row], strict=True)
    return [slots[:count].tolist() for slots, count in heads]


@settings(max_examples=40)
@given(
    st.sampled_from([1, 4, 16]),
    st.sampled_from([31, 63, 64, 65]),
    st.integers(1, 5),
    st.integers(1, 40),
    st.integers(0, 30),
    st.sampled_from([None, 2.0]),
    st.booleans(),
)
def test_pages_are_those_of_the_leader(page, tokens, groups, budget, unused, softcap, sinks):
    leader, follower = pair(page)
    sink_logits = torch.linspace(-2, 2, 2 * groups) if sinks else None
    case = Case(
        tokens,
        padding=(0, unused),
        groups=groups,
        seed=tokens + budget,
        softcap=softcap,
        sink_logits=sink_logits,
    )
    case.lead(leader)
    selection = follower.select(case.step(Budget(tokens=budget)))
    for row in range(2):
        for found in lists(selection, row):
            assert found == case.expected(row, page, budget)


@pytest.mark.parametrize("page", [1, 4])
@pytest.mark.parametrize("budget", [5, 17])
def test_a_ranker_reads_what_it_ranks_for_others(page, budget):
    board, case = Board(), Case(63, padding=(0, 20), groups=3)
    ranker, follower = (SharedPageSelector(role, board, page) for role in (Role.RANKER, Role.FOLLOWER))
    step = case.step(Budget(tokens=budget))
    own = ranker.select(step._replace(query=case.query))
    behind = follower.select(step)
    for row in range(2):
        assert lists(own, row) == lists(behind, row) == [case.expected(row, page, budget)] * 2
    # All keys, in float32, once; a follower reads none.
    assert [each.bytes_read(step) for each in (ranker, follower)] == [case.parts.last * 8 * 4, 0]
    assert not ranker.reads_all


def test_one_head_is_enough():
    """The greatest over heads, not the mean: the page of one sure head precedes one all like a little."""
    keys = torch.zeros(1, 1, 40, 4)
    keys[0, 0, 8, 0], keys[0, 0, 20, 1] = 30.0, 6.0
    query = torch.zeros(1, 8, 4)
    query[0, 0, 0], query[0, 1:, 1] = 1.0, 1.0
    case = Case(40, heads=1, groups=8, size=4)
    case.keys, case.query = keys, query
    leader, follower = pair()
    case.lead(leader)
    assert lists(follower.select(case.step(Budget(tokens=4))), 0) == [[8, 9, 10, 11]]


def test_ties_go_to_the_older_page():
    case = Case(40)
    case.keys.zero_()
    leader, follower = pair()
    case.lead(leader)
    assert lists(follower.select(case.step(Budget(tokens=5))), 0) == [[4, 5, 6, 7, 8]] * 2


def test_mass_is_the_leaders():
    case = Case(60)
    leader, follower = pair()
    case.lead(leader)
    selection = follower.select(case.step(Budget(mass=0.9, floor=0)))
    read = set(lists(selection, 0)[0]) | set(case.parts.always[0].tolist())
    logits = oracles.exact_logits(oracles.array(case.query[0]), oracles.array(case.keys[0]), scale=8**-0.5)
    weights = torch.tensor(logits).softmax(-1).unflatten(0, (2, 2)).mean(1)
    assert selection.mass[0].tolist() == pytest.approx(weights[:, sorted(read)].sum(-1).tolist(), rel=1e-4)
    assert float(selection.mass.min()) >= 0.9 - 1e-5


def test_a_list_is_picked_once_for_all_that_follow():
    leader, follower = pair()
    other = SharedPageSelector(Role.FOLLOWER, leader.board, 4)
    case = Case(60)
    case.lead(leader)
    first, second = (one.select(case.step(Budget(tokens=8))) for one in (follower, other))
    assert first.slots.data_ptr() == second.slots.data_ptr()


@pytest.mark.parametrize("change", ["later", "crop", "reorder", "never"])
def test_a_list_is_of_one_step_only(change):
    """A list of another step is not read by mistake."""
    leader, follower = pair()
    case = Case(60)
    if change != "never":
        case.lead(leader)
        follower.select(case.step(Budget(tokens=8)))
    if change == "crop":
        leader.crop(40)
    if change == "reorder":
        follower.reorder(torch.tensor([0]))
    later = Case(61) if change == "later" else case
    with pytest.raises(ValueError, match="without its leader"):
        follower.select(later.step(Budget(tokens=8)))


def test_nobody_to_follow_reads_the_newest():
    follower = SharedPageSelector(Role.FOLLOWER, None, 4)
    selection = follower.select(Case(60, padding=(0, 30)).step(Budget(tokens=10)))
    # The window begins at 55. What is left after two pages goes to the start of a third.
    assert lists(selection, 0) == lists(selection, 1) == [[44, 45, 46, *range(48, 55)]] * 2
    assert selection.mass[0].tolist() == pytest.approx([(10 + 8) / 60] * 2)


@pytest.mark.parametrize("window", [1, 6])
@pytest.mark.parametrize("length", [1, 5, 6, 7, 8, 9])
def test_a_leader_of_a_short_text(length, window):
    """Nothing competes yet; nobody asks, and nothing breaks."""
    layer = Layer(f"delta(budget=2, sinks=2, window={window}, page=4, dense_below=0)")
    layer.append(length)
    for _ in range(4):
        layer.step()


@pytest.mark.parametrize("options", ["budget=5", "budget=0.3"])
@pytest.mark.parametrize("page", [1, 4, 16])
def test_a_long_life(page, options):
    live(f"delta({options}, page={page}, sinks=3, window=5, dense_below=0)")


def test_every_layer_reads_its_own_leaders_pages():
    """Six layers, two leaders, one of them behind a follower that has none; keys differ between layers."""
    layers = Recipe.parse("delta(full=(1, 4), budget=8, page=4, sinks=2, window=3, dense_below=0)").layers(6)
    selectors = [layer.selector for layer in layers]
    assert [
        one.role.value for one in selectors if isinstance(one, SharedPageSelector)
    ] == oracles_pages.delta_roles(6, {1, 4})
    read = [[] for _ in layers]
    for layer, seen in zip(layers, read, strict=True):
        layer.observe(lambda observed, seen=seen: seen.append(observed.read.selection.slots.tolist()))
    generator = torch.Generator().manual_seed(0)
    for step in range(4):
        for layer in layers:
            count = 1 if step else 60
            keys = torch.randn(1, 2, count, 8, generator=generator)
            layer.append(keys, keys)
            layer.attend(3 * torch.randn(1, 4, 1, 8, generator=generator), Logits(8**-0.5))
    assert [len(seen) for seen in read] == [4, 0, 4, 4, 0, 4]
    assert read[2] == read[3]
    assert all(ours != theirs for ours, theirs in zip(read[2], read[5], strict=True))
    assert len({str(seen) for seen in read[2]}) > 1
