import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyhole.core.budget import Budget
from keyhole.core.errors import SpecError

shares = st.floats(min_value=0, max_value=1, exclude_min=True, allow_nan=False)
budgets = st.one_of(
    st.builds(Budget, tokens=st.integers(min_value=1, max_value=10**9)),
    st.builds(Budget, fraction=shares),
    st.builds(Budget, mass=shares),
    st.builds(Budget, error=shares),
)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        (256, Budget(tokens=256)),
        ("256", Budget(tokens=256)),
        (" +256\n", Budget(tokens=256)),
        (0.1, Budget(fraction=0.1)),
        ("0.1", Budget(fraction=0.1)),
        ("1e-3", Budget(fraction=0.001)),
        (1.0, Budget(fraction=1.0)),
        ("1.0", Budget(fraction=1.0)),
        (1, Budget(tokens=1)),
        ("1", Budget(tokens=1)),
        ("10%", Budget(fraction=0.1)),
        ("2.5%", Budget(fraction=0.025)),
        ("100%", Budget(fraction=1.0)),
        ("mass=0.95", Budget(mass=0.95)),
        ("mass=1", Budget(mass=1.0)),
        ("error=0.05", Budget(error=0.05)),
        (Budget(tokens=3), Budget(tokens=3)),
    ],
)
def test_reads_what_users_write(text, budget):
    assert Budget.parse(text) == budget


@pytest.mark.parametrize(
    "value",
    [
        *[True, False, None, [], [1], {}, {"mass": 0.9}, b"1", 1j, ..., object],
        *[0, -1, 0.0, -0.1, 1.0000001, 2.0, math.nan, math.inf, -math.inf],
        *["", " ", "ten", "0", "-1", "-0.1", "1.5", "0.1.1", "nan", "inf", "1e400", "0x10", "1_000"],
        *["0%", "101%", "-10%", "%", "10 %", "10%%", "10% of it"],
        *[
            "mass",
            "mass=",
            "mass=0",
            "mass=2",
            "mass=-1",
            "mass=nan",
            "mass=x",
            "Mass=0.9",
            "mass=0.9,floor=1",
            "error=",
            "error=0",
            "error=1.5",
            "errors=0.1",
        ],
        *["1;import os", "__import__('os')", "\x00", "\ud800", "9" * 5000, "½", "−1"],
    ],
    ids=lambda value: ascii(value)[:24],
)
def test_refuses_what_is_no_budget(value):
    with pytest.raises(SpecError) as refusal:
        Budget.parse(value)
    assert "give" in str(refusal.value)


@pytest.mark.parametrize(
    ("given_", "named"),
    [
        ({}, "exactly one"),
        ({"tokens": 1, "mass": 0.5}, "exactly one"),
        ({"tokens": 1, "fraction": 0.5, "mass": 0.5}, "exactly one"),
        ({"mass": 0.5, "error": 0.1}, "exactly one"),
        ({"error": 0}, "error 0"),
        ({"error": True}, "True"),
        ({"error": 0.1, "cap": 2}, "cap 2"),
        ({"tokens": 2.5}, "2.5"),
        ({"tokens": True}, "True"),
        ({"fraction": True}, "True"),
        ({"fraction": "0.1"}, "'0.1'"),
        ({"mass": True}, "True"),
        ({"mass": "high"}, "'high'"),
        ({"mass": 10**400}, "0, 1"),
        ({"mass": 0.9, "floor": -1}, "-1"),
        ({"mass": 0.9, "floor": 0.5}, "0.5"),
        ({"mass": 0.9, "floor": False}, "False"),
        ({"mass": 0.9, "cap": 0}, "cap 0"),
        ({"mass": 0.9, "cap": 1.1}, "1.1"),
        ({"mass": 0.9, "cap": "x"}, "'x'"),
        ({"tokens": 8, "floor": 3}, "mass"),
        ({"fraction": 0.1, "cap": 0.5}, "mass"),
    ],
)
def test_refuses_what_does_not_fit_together(given_, named):
    with pytest.raises(SpecError, match=named):
        Budget(**given_)


@given(budgets)
def test_prints_what_it_reads(budget):
    assert Budget.parse(str(budget)) == budget


@given(budgets)
def test_what_a_step_finds_out_varies(budget):
    assert budget.varies == (budget.mass is not None or budget.error is not None)


def test_whole_context_is_not_one_token():
    assert str(Budget(fraction=1.0)) == "1.0"
    assert str(Budget(tokens=1)) == "1"


@given(budgets, st.integers(1, 10**6), st.integers(0, 10**5))
def test_limit_grows_with_the_context_and_stays_within_it(budget, context, more):
    assert 1 <= budget.limit(context) <= budget.limit(context + more)
    if budget.tokens is None:
        assert budget.limit(context) <= context


@pytest.mark.parametrize(
    ("budget", "limits"),
    [
        (Budget(tokens=64), {1: 64, 63: 64, 10**6: 64}),
        (Budget(fraction=0.1), {1: 1, 14: 1, 100: 10, 2000: 200, 2005: 200, 2006: 201}),
        (Budget(fraction=1.0), {1: 1, 63: 63, 2000: 2000}),
        (Budget(mass=0.9), {1: 1, 2000: 2000}),
        (Budget(mass=0.9, cap=0.25), {1: 1, 2000: 500}),
        (Budget(error=0.1), {1: 1, 2000: 2000}),
        (Budget(error=0.1, cap=0.25), {1: 1, 2000: 500}),
    ],
    ids=str,
)
def test_limit(budget, limits):
    assert {context: budget.limit(context) for context in limits} == limits
