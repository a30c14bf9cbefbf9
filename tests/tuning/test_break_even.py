"""Break-even lengths: measured once, remembered, and never in the way."""

import json
import logging

import pytest
import torch

from keyhole.core.break_even import BreakEven
from keyhole.core.model_info import ModelInfo
from keyhole.methods import Recipe
from keyhole.tuning import break_even as calibration
from keyhole.tuning.break_even import break_even, break_evens, cache_file
from keyhole.tuning.crossing import NEVER, Point
from keyhole.tuning.search import Heads, Search

SIZES = {"query_heads": 4, "kv_heads": 2, "head_dim": 16}
HEADS = Heads(*SIZES.values(), 16, torch.float32, torch.device("cpu"))
POINTS = [Point(512, 2, 1), Point(1024, 1, 2)]


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(calibration, "_measured", {})


@pytest.fixture
def searches(monkeypatch):
    """The searches done; each finds a crossing at 768 tokens."""
    done = []

    def found(recipe, heads, **_):
        done.append((str(recipe), heads))
        return Search(POINTS, True)

    monkeypatch.setattr(calibration, "search", found)
    return done


def forget(monkeypatch):
    """As in another process."""
    monkeypatch.setattr(calibration, "_measured", {})


def test_measured_once_then_remembered(searches, monkeypatch):
    assert break_even("pqcache", **SIZES) == 768
    assert break_even("pqcache", **SIZES) == 768
    forget(monkeypatch)
    assert break_even(Recipe.parse("pqcache"), **SIZES) == 768
    assert len(searches) == 1
    assert list(json.loads(cache_file().read_text()).values()) == [768]


def test_force_measures_again(searches):
    break_even("pqcache", **SIZES)
    break_even("pqcache", force=True, **SIZES)
    assert len(searches) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"query_heads": 8},
        {"kv_heads": 1},
        {"head_dim": 32},
        {"value_dim": 8},
        {"dtype": torch.bfloat16},
        {"batch": 2},
        {"threads": torch.get_num_threads() + 1},
    ],
    ids=str,
)
def test_another_setting_is_measured_for_itself(searches, change):
    break_even("pqcache", **SIZES)
    break_even("pqcache", **SIZES | change)
    assert len(searches) == 2


def test_larger_batches_go_by_what_was_measured_of_them(monkeypatch):
    found = {1: 4096, 3: 2048, 8: 1024}
    monkeypatch.setattr(
        calibration, "search", lambda _, heads, **__: Search([Point(found[heads.batch], 1, 2)], True)
    )
    assert break_evens("pqcache", HEADS) == BreakEven(4096)
    break_even("pqcache", batch=8, **SIZES)
    forget(monkeypatch)
    break_even("pqcache", batch=3, **SIZES)
    pays = break_evens("pqcache", HEADS)
    assert pays == BreakEven(4096, ((3, 2048), (8, 1024)))
    assert [pays.at(batch) for batch in (1, 2, 3, 7, 8, 9)] == [4096, 4096, 2048, 2048, 1024, 1024]


def test_methods_that_select_nothing_always_pay_in_any_batch(searches):
    assert break_evens("dense", HEADS).at(5) == 0
    assert searches == []


def test_refuses_a_batch_of_nothing():
    with pytest.raises(ValueError, match="batch=0 is out of range"):
        break_even("pqcache", batch=0, **SIZES)


@pytest.mark.parametrize("name", ["cpu_model", "isa_level", "__version__"])
def test_another_machine_or_version_is_measured_for_itself(searches, monkeypatch, name):
    break_even("pqcache", **SIZES)
    monkeypatch.setattr(calibration, name, "9" if name == "__version__" else lambda: "other")
    break_even("pqcache", **SIZES)
    break_even("pqcache(budget=64)", **SIZES)
    assert len(searches) == 3
    assert len(json.loads(cache_file().read_text())) == 3


def test_methods_that_select_nothing_always_pay(searches):
    assert break_even("dense", **SIZES) == 0
    assert searches == []


def test_never_is_remembered(monkeypatch):
    monkeypatch.setattr(calibration, "search", lambda *_, **__: Search([Point(512, 2, 1)], True))
    assert break_even("oracle", **SIZES) == NEVER
    forget(monkeypatch)
    monkeypatch.setattr(calibration, "search", None)
    assert break_even("oracle", **SIZES) == NEVER


@pytest.mark.parametrize("text", ["{", "[]", "\x80", '{"a": "b"}'])
def test_an_unreadable_file_is_measured_over(searches, monkeypatch, text):
    cache_file().parent.mkdir(parents=True)
    cache_file().write_bytes(text.encode("latin-1"))
    assert break_even("pqcache", **SIZES) == 768
    forget(monkeypatch)
    assert break_even("pqcache", **SIZES) == 768
    assert len(searches) == 1


@pytest.mark.usefixtures("searches")
def test_a_value_that_is_no_length_is_measured_again():
    break_even("pqcache", **SIZES)
    held = json.loads(cache_file().read_text())
    for bad in ("many", -1, True, 2.5, None):
        calibration._measured.clear()
        cache_file().write_text(json.dumps(dict.fromkeys(held, bad)))
        assert break_even("pqcache", **SIZES) == 768


def test_an_unwritable_cache_is_kept_in_memory(searches, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, logger="keyhole.tuning.break_even"):
        assert break_even("pqcache", **SIZES) == 768
        assert break_even("pqcache", **SIZES) == 768
    assert len(searches) == 1
    assert "cannot keep" in caplog.text


def test_an_unsettled_search_is_not_written(monkeypatch, caplog):
    monkeypatch.setattr(calibration, "search", lambda *_, **__: Search(POINTS, False))
    assert break_even("pqcache", **SIZES) == 768
    assert not cache_file().exists()
    assert "keyhole bench calibrate" in caplog.text


def test_the_cache_is_in_the_users_directory(monkeypatch, tmp_path):
    assert cache_file() == tmp_path / "cache" / "keyhole" / "calibration.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_file() == tmp_path / ".cache" / "keyhole" / "calibration.json"


@pytest.mark.parametrize("batch", [1, 3])
def test_a_real_measurement_gives_a_length(batch):
    tokens = break_even("pqcache(subspaces=4, bits=4, budget=64)", seconds=0.2, batch=batch, **SIZES)
    assert tokens > 0


def test_below_it_a_layer_reads_everything():
    torch.manual_seed(0)
    spec = "pqcache(subspaces=4, bits=4, budget=64{})"
    cases = [("", 0, True), ("", 401, True), ("", 402, False)]
    cases += [(f", dense_below={n}", 9999, n <= 401) for n in (0, 400, 401, 402)]
    for option, measured, selects in cases:
        layer = Recipe.parse(spec.format(option)).layers(ModelInfo((0,), BreakEven(measured)))[0]
        layer.append(torch.randn(1, 2, 400, 16), torch.randn(1, 2, 400, 16))
        layer.append(torch.randn(1, 2, 1, 16), torch.randn(1, 2, 1, 16))
        layer.prepare()
        assert (layer.indexed > 0) is selects


@pytest.mark.parametrize(("batch", "selects"), [(1, False), (2, True), (3, True), (4, False)])
def test_each_batch_goes_by_its_own_length(batch, selects):
    pays = BreakEven(9999, ((2, 401), (4, 402)))
    layer = Recipe.parse("pqcache(subspaces=4, bits=4, budget=64)").layers(ModelInfo((0,), pays))[0]
    layer.append(torch.randn(batch, 2, 401, 16), torch.randn(batch, 2, 401, 16))
    assert layer.selects is selects
