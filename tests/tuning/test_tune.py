"""What `keyhole tune` measures is used from then on, until it is reset."""

import pytest
import torch

from keyhole.core.costs import Heads, cost_table, user_file
from keyhole.core.costs.table import FORMS, forget
from keyhole.methods import Recipe
from keyhole.methods.pays import break_evens, machine_of
from keyhole.tuning import tune as module
from keyhole.tuning.measure import Point
from keyhole.tuning.tune import keep, reset, tune

CPU = torch.device("cpu")
HEADS = Heads(32, 8, 128, 128, torch.float32)


def point(form, method, tokens, selecting):
    return Point(form, method, 8, 2, 64, 1, tokens, 0.1, selecting, tokens)


@pytest.fixture(autouse=True)
def _own(monkeypatch, tmp_path):
    monkeypatch.setenv("KEYHOLE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("KEYHOLE_COSTS")
    forget()
    yield
    forget()


@pytest.fixture
def measured(monkeypatch):
    points = [point(form, "quest", n, 50 + n / 2) for form in FORMS for n in (1000, 2000, 4000)]
    monkeypatch.setattr(module, "measure", lambda *_, **__: points)


@pytest.mark.usefixtures("measured")
def test_measuring_alone_writes_nothing(tmp_path):
    table, points = tune(CPU)
    assert table.machine == machine_of(CPU)
    assert len(points) == 12
    assert not (tmp_path / "home").exists()


@pytest.mark.usefixtures("measured")
def test_what_is_kept_is_used_until_reset():
    before = break_evens(Recipe.parse("quest"), HEADS, CPU)
    table, points = tune(CPU, command="keyhole tune")
    path = keep(table, points)
    assert path == user_file(table.machine)
    used = cost_table(table.machine)
    assert used.tuned
    assert used.source == f"tuned ({table.provenance['date']})"
    assert used.provenance["command"] == "keyhole tune"
    assert break_evens(Recipe.parse("quest"), HEADS, CPU) != before
    assert reset() == [path]
    assert break_evens(Recipe.parse("quest"), HEADS, CPU) == before
    assert reset() == []


@pytest.mark.usefixtures("measured")
def test_kept_elsewhere_it_is_not_used(tmp_path):
    table, points = tune(CPU)
    assert keep(table, points, tmp_path / "elsewhere.json").exists()
    assert not cost_table(table.machine).tuned


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_missing_is_refused():
    with pytest.raises(ValueError, match="'cuda' is not available; give cpu"):
        tune(torch.device("cuda"))


def test_threads_are_as_they_were(monkeypatch):
    seen = []
    monkeypatch.setattr(
        module,
        "measure",
        lambda *_, **__: seen.append(torch.get_num_threads()) or [point("int4", "quest", 9, 9)],
    )
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        tune(CPU)
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)
