"""Cost constants: what is shipped, what the user measured, and what is refused."""

import json
import os

import pytest
import torch

from keyhole.core.costs import DENSE, CostTable, Heads, Rates, Work, cost_table, user_file
from keyhole.core.costs.places import shipped_file, user_directory
from keyhole.core.costs.table import FORMS, MACHINES, forget, read_table
from keyhole.core.files import write_text

RATES = Rates(100.0, Work(read=0.125))
TABLE = CostTable("base", {form: {DENSE: RATES, "quest": RATES} for form in FORMS}, {"date": "2026-01-02"})


@pytest.fixture(autouse=True)
def _home(monkeypatch, tmp_path):
    monkeypatch.setenv("KEYHOLE_HOME", str(tmp_path))
    monkeypatch.delenv("KEYHOLE_COSTS")
    forget()
    yield
    forget()


def test_a_step_is_overhead_and_work_that_threads_share():
    rates = Rates(100.0, Work(read=2.0, ranked=4.0))
    work = Work(read=3000, ranked=500, scanned=1e9)
    assert rates.microseconds(work) == 100 + 6 + 2
    assert rates.microseconds(work, threads=4) == 100 + 8 / 4
    assert rates.microseconds(work, threads=8) == rates.microseconds(work, threads=64) == 101
    assert rates.microseconds(work, threads=0) == rates.microseconds(work, threads=1)


@pytest.mark.parametrize("machine", MACHINES)
def test_constants_are_shipped_with_their_provenance(machine):
    table = cost_table(machine)
    assert (table.machine, table.tuned, table.source) == (machine, False, "shipped")
    assert {"date", "command", "values"} <= set(table.provenance)
    assert set(table.rates) == set(FORMS)
    for known in table.rates.values():
        assert DENSE in known
        assert len(known) > 1


def test_tuned_constants_go_before_shipped_ones():
    write_text(user_file("base"), TABLE.text())
    table = cost_table("base")
    assert (table.tuned, table.source) == (True, "tuned (2026-01-02)")
    assert table.rates == TABLE.rates
    assert cost_table("avx2").tuned is False
    assert cost_table("base") is table


def test_the_environment_pins_the_shipped_ones_or_makes_selecting_free(monkeypatch):
    write_text(user_file("base"), TABLE.text())
    monkeypatch.setenv("KEYHOLE_COSTS", "shipped")
    assert cost_table("base").tuned is False
    monkeypatch.setenv("KEYHOLE_COSTS", "zero")
    assert cost_table("base") is None
    monkeypatch.setenv("KEYHOLE_COSTS", "Shipped")
    with pytest.raises(ValueError, match=r"KEYHOLE_COSTS='Shipped' is not understood; give shipped or zero"):
        cost_table("base")


def changed(change):
    held = json.loads(TABLE.text())
    change(held)
    return json.dumps(held)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        "{}",
        '{"format": 1}',
        changed(lambda held: held.update(format=2)),
        changed(lambda held: held["rates"].pop("int4")),
        changed(lambda held: held["rates"]["int8"].pop(DENSE)),
        changed(lambda held: held["rates"]["int8"][DENSE].update(read=-1)),
        changed(lambda held: held["rates"]["int8"][DENSE].update(read=float("nan"))),
        changed(lambda held: held["rates"]["int8"][DENSE].update(read=True)),
        changed(lambda held: held["rates"]["int8"][DENSE].update(read="1")),
        changed(lambda held: held["rates"]["int8"][DENSE].update(reads=1)),
        changed(lambda held: held["rates"]["int8"][DENSE].pop("overhead")),
        changed(lambda held: held["rates"].update(int8=3)),
    ],
)
def test_damaged_constants_are_refused_and_never_passed_over(text):
    write_text(user_file("base"), text)
    with pytest.raises(ValueError, match=r"base.json cannot be used .*keyhole tune --reset"):
        cost_table("base")


def test_a_method_that_was_not_measured_is_taken_for_a_typical_one():
    """Neither for the slowest of each kind, by which it would never select, nor for the dense step."""
    known = {
        DENSE: Rates(9e8, Work()),
        "a": Rates(1.0, Work(read=5.0, scanned=1.0)),
        "b": Rates(2.0, Work(read=3.0, ranked=7.0)),
        "c": Rates(9.0, Work(read=3.0, scanned=4.0, ranked=2.0)),
    }
    table = CostTable("base", dict.fromkeys(FORMS, known))
    assert table.of("int8", "a") == known["a"]
    assert table.of("int8", "new") == Rates(2.0, Work(scanned=1.0, ranked=2.0, read=3.0))
    del known["c"]
    two = CostTable("base", dict.fromkeys(FORMS, known))
    assert two.of("int8", "new") == Rates(2.0, Work(scanned=1.0, ranked=7.0, read=5.0))


def test_what_is_written_is_what_is_read(tmp_path):
    path = tmp_path / "table.json"
    write_text(path, TABLE.text(points=[[1, 2], [3, 4]]))
    assert read_table(path, tuned=True).rates == TABLE.rates
    assert json.loads(path.read_text())["points"] == [[1, 2], [3, 4]]
    assert os.listdir(tmp_path) == ["table.json"]


def test_constants_are_in_the_users_directory(monkeypatch, tmp_path):
    assert user_file("avx2") == tmp_path / "costs" / "avx2.json"
    monkeypatch.delenv("KEYHOLE_HOME")
    monkeypatch.setattr("platformdirs.user_config_path", lambda name, **_: tmp_path / "system" / name)
    assert user_directory() == tmp_path / "system" / "keyhole"
    assert shipped_file("avx2").parent.name == "costs"


@pytest.mark.parametrize(
    ("sizes", "said"), [((4, 3, 16, 16), "4 query heads"), ((4, 2, 0, 16), "head_dim=0")]
)
def test_impossible_heads_are_refused(sizes, said):
    with pytest.raises(ValueError, match=said):
        Heads(*sizes, torch.float32)
