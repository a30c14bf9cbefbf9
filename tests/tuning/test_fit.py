"""Rates are found again from the steps they explain, and what is shipped is what its steps give."""

import json
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from keyhole.core.costs import DENSE, Rates, Work, cost_table
from keyhole.core.costs.places import shipped_file
from keyhole.core.costs.table import FORMS, MACHINES
from keyhole.methods.work import dense_work, selecting_work
from keyhole.tuning.fit import fit, non_negative
from keyhole.tuning.measure import SHAPES, Point, measured_methods

MEASURED = [machine for machine in MACHINES if machine != "cuda"]
CASES = ((1, 1024, 0.1), (1, 4096, 0.3), (2, 8192, 0.1))


@given(
    st.lists(st.floats(-3, 3), min_size=12, max_size=12), st.lists(st.floats(-3, 3), min_size=4, max_size=4)
)
def test_least_squares_without_negatives(entries, target):
    """The conditions that only the best non-negative answer meets (Karush, Kuhn and Tucker)."""
    matrix = torch.tensor(entries, dtype=torch.float64).view(4, 3)
    aim = torch.tensor(target, dtype=torch.float64)
    found = non_negative(matrix, aim)
    gain = matrix.T @ (aim - matrix @ found)
    assert (found >= 0).all()
    assert (gain <= 1e-6).all()
    assert (gain[found > 0].abs() <= 1e-6).all()


def test_exact_steps_give_their_rates_back():
    """Two methods that share how fast keys and values are read, beside a dense step."""
    rates = {
        "quest": Rates(900.0, Work(scanned=0.2, ranked=3.0, read=0.3)),
        "tokenselect": Rates(1500.0, Work(scanned=0.1, ranked=9.0, read=0.3)),
        DENSE: Rates(300.0, Work(ranked=5.0, read=0.1)),
    }
    found = fit("base", list(steps(rates)), {}).rates["float32"]
    for name, known in rates.items():
        assert found[name].overhead == pytest.approx(known.overhead, rel=0.01)
        assert found[name].per_unit == pytest.approx(known.per_unit, rel=0.01)


def steps(rates):
    """What would be measured, by these rates."""
    for name in set(rates) - {DENSE}:
        for shape, (batch, tokens, budget) in product(SHAPES, CASES):
            point = Point("float32", name, *shape, batch, tokens, budget, 0.0, 0.0)
            (_, own), (_, dense) = both(point)
            times = rates[name].microseconds(own), rates[DENSE].microseconds(dense)
            yield point._replace(selecting=times[0], dense=times[1])


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
    yield DENSE, dense_work(point.heads, point.form, point.tokens)
