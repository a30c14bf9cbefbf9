"""Steps are measured by every method in every form, on sizes of a test."""

import pytest
import torch

from keyhole.methods import METHODS
from keyhole.tuning import measure as module
from keyhole.tuning.measure import FORMS, measure, measured_methods, method_of

SHAPES = ((4, 2, 16),)
CASES = ((1, 400, 0.1), (2, 300, 0.3))


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(module, "_CASES", CASES)
    monkeypatch.setattr(module, "_FLUSHED", 1 << 18)


def test_every_method_gives_a_point_for_each_case():
    said = []
    points = measure(
        measured_methods(),
        forms=["float32", "int8"],
        shapes=SHAPES,
        rounds=1,
        progress=lambda *what: said.append(what),
    )
    found = {(point.form, point.method, point.batch, point.tokens, point.budget) for point in points}
    assert found == {
        (form, name, *case)
        for form in ("float32", "int8")
        for name in measured_methods()
        for case in CASES
        if (form, name) != ("int8", "shadowkv") and name != "infllm_v2"  # whose window is longer than these
    }
    assert all(point.selecting > 0 < point.dense for point in points)
    assert [done for _, done, _ in said] == list(range(said[0][2]))


def test_what_reads_everything_anyway_has_no_point(monkeypatch):
    monkeypatch.setattr(module, "_CASES", ((1, 40, 0.1),))
    assert measure(["quest"], forms=["float32"], shapes=SHAPES, rounds=1) == []


def test_methods_that_say_where_they_pay_are_not_measured():
    assert "delta" in METHODS
    assert "delta" not in measured_methods()
    assert "oracle" in measured_methods()


@pytest.mark.parametrize("form", FORMS)
def test_methods_are_measured_as_they_select(form):
    for name in measured_methods():
        if not (name == "shadowkv" and form.startswith("int")):
            method = method_of(name, form, 0.2)
            assert (method.dense_below, method.budget.fraction) == (0, 0.2)
            assert method.kv_dtype == (form if form.startswith("int") else "auto")


def test_a_point_knows_its_sizes():
    point = module.Point("bfloat16", "quest", 8, 2, 64, 3, 1000, 0.1, 5.0, 6.0)
    assert point.heads == module.Heads(8, 2, 64, 64, torch.bfloat16, 3)
    assert str(point.method_read) == "quest(budget=0.1, dense_below=0)".replace("budget=0.1, ", "")
