"""The choice of slots: highest shares of mass, ties by position, ranges and budgets honoured."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keyhole import kernels
from tests.kernels.cases import make_index, shares

NONE = -math.inf


def check(index, picked, first, last, *, k=None, mass=None, floor=0, cap=None, anchor_lse=None, softcap=None):
    """`picked` follows the definition, up to the float32 rounding of shares."""
    rows, heads = index.query.shape[:2]
    anchor_lse = torch.full((rows, heads), NONE) if anchor_lse is None else anchor_lse
    firsts = [first] * rows if isinstance(first, int) else list(first)
    lasts = [last] * rows if isinstance(last, int) else list(last)
    for row in range(rows):
        count = int(picked.counts[row])
        slots = picked.slots[row, :count].long()
        n = lasts[row] - firsts[row]
        assert (slots.diff() > 0).all()
        assert not picked.slots[row, count:].any()
        assert count == 0 or (slots[0] >= firsts[row] and slots[-1] < lasts[row])
        share, anchor, reach = shares(index, row, firsts[row], lasts[row], anchor_lse, softcap)
        if n == 0:
            assert count == 0
            continue
        chosen = torch.zeros(n, dtype=torch.bool)
        chosen[slots - firsts[row]] = True
        error = 2e-6 + 4e-7 * reach
        check_best(share, chosen, error)
        check_ties(index.codes[row, firsts[row] : lasts[row]], chosen)
        assert float(picked.mass[row]) == pytest.approx(
            anchor + float(share[chosen].sum()), rel=error, abs=1e-6
        )
        if k is not None:
            assert count == min(k, n)
        else:
            check_mass(share, chosen, anchor, mass, floor, n if cap is None else cap, error)


def check_best(share, chosen, error):
    """No slot left out has a share above that of a chosen one."""
    if chosen.any() and not chosen.all():
        assert share[~chosen].max() <= share[chosen].min() * (1 + error) + share.max() * 1e-36


def check_ties(codes, chosen):
    """Among slots with equal codes the chosen ones come first."""
    _, group = codes.unique(dim=0, return_inverse=True)
    for value in group[chosen].unique():
        members = chosen[group == value]
        assert members[: members.sum()].all()


def check_mass(share, chosen, anchor, mass, floor, cap, error):
    """The fewest slots that reach the mass, within floor and cap."""
    n, count = len(share), int(chosen.sum())
    assert min(floor, n) <= count <= cap
    held = anchor + float(share[chosen].sum())
    if count < min(cap, n):
        assert held >= mass - error
    if count > floor:
        assert held - float(share[chosen].min()) < mass + error


def select(index, first, last, impl, **options):
    return kernels.pq_select(*index.parts, first, last, scale=index.scale, impl=impl, **options)


@pytest.mark.parametrize("n", [1, 31, 63, 64, 65, 100, 2000])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("k", [0, 1, 10, 64, 5000])
def test_sizes(impl, n, bits, k):
    index = make_index(n=n, bits=bits)
    picked = select(index, 0, n, impl, k=k)
    assert picked.slots.shape[1] == min(k, index.buffer.shape[1] * 64)
    check(index, picked, 0, n, k=k)


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 8, 64])
def test_heads(any_impl, heads):
    index = make_index(heads=heads, n=700)
    check(index, select(index, 3, 699, any_impl, k=50), 3, 699, k=50)


@pytest.mark.parametrize("n", [5000, 40000])
@pytest.mark.parametrize("spread", [0.01, 3.0, 30.0, 1000.0])
@pytest.mark.parametrize("rows", [1, 3])
def test_long_rows(impl, n, spread, rows):
    index = make_index(rows=rows, n=n, subspaces=16, spread=spread)
    anchors = torch.randn(rows, 4) * spread
    check(index, select(index, 1, n, impl, k=100, anchor_lse=anchors), 1, n, k=100, anchor_lse=anchors)


def test_ranges_differ_by_row(any_impl):
    index = make_index(rows=5, n=1500)
    first, last = [0, 63, 700, 64, 1499], [1500, 65, 700, 1400, 1500]
    check(index, select(index, first, last, any_impl, k=40), first, last, k=40)
    same = select(index, torch.tensor(first), torch.tensor(last), any_impl, k=40)
    lists = select(index, first, last, any_impl, k=40)
    assert all(torch.equal(a, b) for a, b in zip(same, lists, strict=True))


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("options", [
    {"mass": 0.5}, {"mass": 0.95}, {"mass": 1.0}, {"mass": 0.0}, {"mass": 0.0, "floor": 7},
    {"mass": 0.9, "cap": 30}, {"mass": 0.3, "floor": 900, "cap": 1000}, {"mass": 0.9, "floor": 9000},
    {"mass": 0.99, "cap": 0},
])  # fmt: skip
@pytest.mark.parametrize("anchor", [NONE, 0.0, 8.0])
def test_mass_budgets(impl, options, softcap, anchor):
    index = make_index(n=3000, subspaces=16, spread=4.0)
    more = {**options, "softcap": softcap, "anchor_lse": torch.full((2, 4), anchor) + torch.randn(2, 4)}
    check(index, select(index, 10, 2990, impl, **more), 10, 2990, **more)


@given(
    rows=st.integers(1, 4),
    heads=st.integers(1, 9),
    n=st.integers(1, 5000),
    subspaces=st.integers(1, 20),
    bits=st.sampled_from([2, 4, 8]),
    spread=st.sampled_from([0.0, 0.1, 2.0, 20.0]),
    k=st.integers(0, 300),
    seed=st.integers(0, 1000),
)
def test_any_index(rows, heads, n, subspaces, bits, spread, k, seed):
    index = make_index(rows=rows, heads=heads, n=n, subspaces=subspaces, bits=bits, spread=spread, seed=seed)
    first, last = seed % (n + 1), n
    anchors = torch.randn(rows, heads) * spread
    check(
        index,
        select(index, first, last, "auto", k=k, anchor_lse=anchors),
        first,
        last,
        k=k,
        anchor_lse=anchors,
    )


@pytest.mark.parametrize("bits", [4, 8])
def test_equal_slots_tie_by_position(impl, bits):
    index = make_index(n=9000, bits=bits)
    index.codes[:] = index.codes[:, :1]
    kernels.write_codes(index.buffer, 0, index.codes, bits=bits)
    picked = select(index, 5, 9000, impl, k=70)
    assert picked.slots[0].tolist() == list(range(5, 75))


def test_rising_scores_rescan(impl):
    """Slots sorted from worst to best, and heads that come alive late: the streaming bound must not hold."""
    index = make_index(rows=1, n=30000, subspaces=16, spread=6.0)
    logits = kernels.pq_scores(*index.parts, 30000, scale=index.scale, impl="reference")
    for order in (logits[0, 0].argsort(), logits[0].amax(0).argsort(), logits[0, 1].argsort(descending=True)):
        index.codes = index.codes[:, order]
        kernels.write_codes(index.buffer, 0, index.codes, bits=4)
        check(index, select(index, 0, 30000, impl, k=500), 0, 30000, k=500)


def test_anchors_weigh_heads(any_impl):
    """A head whose mass lies in the anchors has no say."""
    index = make_index(n=2000, spread=4.0)
    anchors = torch.tensor([[NONE, 60.0, 60.0, 60.0]] * 2)
    picked = select(index, 0, 2000, any_impl, k=20, anchor_lse=anchors)
    check(index, picked, 0, 2000, k=20, anchor_lse=anchors)
    alone = kernels.pq_select(
        index.query[:, :1], *index.parts[1:], 0, 2000, scale=index.scale, k=20, impl=any_impl
    )
    assert torch.equal(picked.slots, alone.slots)


def test_nothing_to_pick(any_impl):
    index = make_index()
    anchors = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, NONE, NONE]])
    picked = select(index, 7, 7, any_impl, k=5, anchor_lse=anchors)
    assert picked.counts.tolist() == [0, 0]
    assert picked.mass.tolist() == [1.0, 0.5]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_bad_anchors_are_refused(impl, value):
    index = make_index()
    with pytest.raises(ValueError, match="anchor_lse"):
        select(index, 0, 10, impl, k=5, anchor_lse=torch.full((2, 4), value))


def test_errors_name_the_value_and_the_range():
    index = make_index()
    cases = [
        ({}, "give exactly one"),
        ({"k": 1, "mass": 0.5}, "give exactly one"),
        ({"k": -1}, "k=-1, expected at least 0"),
        ({"mass": 1.5}, "mass=1.5, expected 0 to 1"),
        ({"mass": 0.5, "floor": 9, "cap": 8}, "floor=9, cap=8"),
        ({"k": 1, "anchor_lse": torch.zeros(4, 2)}, r"\[4, 2\], expected \[2, 4\]"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            select(index, 0, 10, "auto", **options)
    with pytest.raises(ValueError, match=r"0\.\.385 is outside 0\.\.384"):
        select(index, 0, 385, "auto", k=1)
    with pytest.raises(ValueError, match="first has 3 entries"):
        select(index, [0, 0, 0], 10, "auto", k=1)
