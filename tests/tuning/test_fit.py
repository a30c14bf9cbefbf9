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
    """Two methods that share how fast keys and values are read, beside a dense step.

    Quest's pages grow with the heads, so that what it scans and what it ranks are alike; of each other one
    rate is known.
    """
    rates = {
        "quest": Rates(900.0, Work(scanned=0.2, ranked=3.0, read=0.3)),
        "tokenselect": Rates(1500.0, Work(scanned=0.1, ranked=9.0, read=0.3)),
        DENSE: Rates(300.0, Work(ranked=5.0, read=0.1)),
    }
    points = list(steps(rates))
    found = fit("base", points, {}).rates["float32"]
    for name, known in rates.items():
        assert found[name].overhead == pytest.approx(known.overhead, rel=0.01)
        assert found[name].per_unit.read == pytest.approx(known.per_unit.read, rel=0.01)
    assert found["tokenselect"].per_unit == pytest.approx(rates["tokenselect"].per_unit, rel=0.01)
    for point in points:
        for name, work in both(point):
            given = rates[name].microseconds(work)
            assert found[name].microseconds(work) == pytest.approx(given, rel=0.01)


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
def test_shipped_constants_serve_every_method_and_form(machine):
    """Those of methods that came after the measurement are what most methods take."""
    table = cost_table_shipped(machine)
    for form, name in product(FORMS, measured_methods()):
        others = [rates for known, rates in table.rates[form].items() if known != DENSE]
        overheads = [rates.overhead for rates in others]
        assert min(overheads) <= table.of(form, name).overhead <= max(overheads)
        assert len(others) > 1


def cost_table_shipped(machine):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEYHOLE_COSTS", "shipped")
        return cost_table(machine)


def both(point):
    yield point.method, selecting_work(point.method_read, point.heads, point.tokens, point.tokens)
    yield DENSE, dense_work(point.heads, point.form, point.tokens)
