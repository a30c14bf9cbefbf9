"""Rates are found again from the steps they explain, and what is shipped is what its steps give."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyhole.core.costs import Rates, Work, cost_table
from keyhole.core.costs.places import shipped_file
from keyhole.core.costs.table import FORMS, MACHINES
from keyhole.methods.work import dense_work, selecting_work
from keyhole.tuning.fit import fit, fit_rates
from keyhole.tuning.measure import Point, measured_methods

MEASURED = [machine for machine in MACHINES if machine != "cuda"]
WORKS = [
    Work(read=1e6, ranked=1e3),
    Work(read=2e6, ranked=3e4),
    Work(read=5e5, ranked=5e4),
    Work(read=4e6, ranked=2e3),
]


@settings(max_examples=20)
@given(st.floats(10, 1e4), st.floats(0.01, 1), st.floats(0, 1))
def test_exact_steps_give_the_rates_back(overhead, read, ranked):
    rates = Rates(overhead, Work(read=read, ranked=ranked))
    found = fit_rates([(work, rates.microseconds(work)) for work in WORKS])
    for work in WORKS:
        assert found.microseconds(work) == pytest.approx(rates.microseconds(work), rel=1e-4)


def test_no_rate_is_negative():
    """Times that fall with the work."""
    found = fit_rates([(work, 1e3 - work.read / 1e4) for work in WORKS])
    assert all(rate >= 0 for rate in (found.overhead, *found.per_unit))


def points(machine):
    held = json.loads(shipped_file(machine).read_text())["points"]
    return [Point(*point) for point in held]


@pytest.mark.parametrize("machine", MEASURED)
def test_shipped_constants_are_those_of_their_steps(machine):
    table = cost_table_shipped(machine)
    again = fit(machine, points(machine), table.provenance)
    assert {form: set(known) for form, known in again.rates.items()} == {
        form: set(known) for form, known in table.rates.items()
    }
    for point in points(machine):
        for name, work in both(point):
            told, found = (t.of(point.form, name).microseconds(work) for t in (table, again))
            assert told == pytest.approx(found, rel=0.01)


@pytest.mark.parametrize("machine", MEASURED)
def test_shipped_constants_cover_every_method_and_form(machine):
    table = cost_table_shipped(machine)
    for form in FORMS:
        # Low-rank keys have no other form.
        missing = set(measured_methods()) - set(table.rates[form])
        assert missing <= ({"shadowkv"} if form.startswith("int") else set())


def cost_table_shipped(machine):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEYHOLE_COSTS", "shipped")
        return cost_table(machine)


def both(point):
    yield point.method, selecting_work(point.method_read, point.heads, point.tokens, point.tokens)
    yield "dense", dense_work(point.heads, point.form, point.tokens)
