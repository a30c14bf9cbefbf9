"""Public sizes, settings, the plain files, and the planner: nothing here needs torch or SPU."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from keyhole.private import sizes
from keyhole.private.cost import Heads, plan, predicted
from keyhole.private.files import MODEL, RUN, PlainFileError, read_run, read_weights
from keyhole.private.network import network_of
from keyhole.private.rates import Sent
from keyhole.private.settings import Amount, Settings, SettingsError
from keyhole.private.tournament import spent, widths

PLAIN = Path(__file__).parent / "plain" / "gpt2-static"
MPCACHE = Settings(
    "mpcache", sinks=16, window=32, keep=Amount(fraction=0.4), budget=Amount(tokens=48), fine=16, coarse=32
)


@pytest.mark.parametrize("slots", range(100, 140))
def test_clusters_that_are_read_hold_the_budget_whichever_they_are(slots: int) -> None:
    reading = sizes.reading(MPCACHE, slots, slots)
    assert reading is not None
    with_edge = MPCACHE.fine * (reading.ranked - 1) + reading.edge
    assert with_edge >= reading.budget
    assert reading.stop - reading.first > reading.budget


def test_kept_tokens_are_counted_by_length_alone() -> None:
    evicted = sizes.eviction(MPCACHE, 1000)
    assert evicted == sizes.Eviction(picked=352, competing=952, queries=200)
    assert sizes.kept(MPCACHE, 1000) == 400
    assert sizes.eviction(MPCACHE, 48) is None
    assert [step.kept for step in sizes.steps(MPCACHE, 1000, 3)] == [401, 402, 403]


def test_streamingllm_drops_as_many_as_come() -> None:
    steps = sizes.steps(Settings("streamingllm", 2, 4, budget=Amount(tokens=8)), 20, 3)
    assert [(step.kept, step.dropped) for step in steps] == [(9, 1)] * 3


def test_settings_survive_json() -> None:
    assert Settings.of_json(json.loads(json.dumps(MPCACHE.as_json()))) == MPCACHE
    with pytest.raises(SettingsError, match="window"):
        Settings.of_json({name: value for name, value in MPCACHE.as_json().items() if name != "window"})


@pytest.mark.parametrize("name", ["loopback", "lan", "wan", "5,1000"])
def test_the_planner_selects_only_where_that_is_faster(name: str) -> None:
    heads, network = Heads(12, 1, 64), network_of(name)
    costly = replace(MPCACHE, budget=Amount(fraction=0.3), gather="rows")
    for settings in (MPCACHE, replace(MPCACHE, share=True), costly):
        planned, says = plan(heads, settings, 1024, network)
        step = sizes.steps(settings, 1024, 1)[0]
        taken, whole = (
            network.seconds(predicted(heads, settings, reading, step.kept))
            for reading in (step.reading, None)
        )
        assert "1025 tokens" in says
        if taken < whole:
            assert planned == settings
        assert planned.selects != ("nothing is selected" in says)
    assert not planned.selects


def test_rounds_decide_on_a_slow_network() -> None:
    few, many = Sent(4e6, 100), Sent(1e6, 150)
    assert network_of("wan").seconds(few) < network_of("wan").seconds(many)
    assert network_of("loopback").seconds(few) > network_of("loopback").seconds(many)


@pytest.mark.parametrize("text", ["moon", "1", "1,0", "-1,5", "1,2,3", "nan,1"])
def test_other_networks_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="MILLISECONDS,MEGABITS"):
        network_of(text)


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (2, 9), (113, 12), (1025, 12)])
def test_a_tournament_leaves_one(count: int, rows: int) -> None:
    left = count
    for width in widths(count, rows):
        left = -(-left // width)
    assert left == 1
    if count > 100:
        binary = (2,) * (count - 1).bit_length()
        assert spent(count, rows, widths(count, rows)).messages < spent(count, rows, binary).messages


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda run: run.update(format=99), "format 99"),
        (lambda run: run.pop("tensors"), "incomplete|no tensors"),
        (lambda run: run["tensors"].pop("embed"), "no tensor 'embed'"),
        (lambda run: run["shape"].pop("heads"), "another version"),
    ],
)
def test_a_changed_description_is_refused(tmp_path: Path, change, says: str) -> None:
    run = json.loads((PLAIN / RUN).read_text())
    change(run)
    (tmp_path / RUN).write_text(json.dumps(run))
    with pytest.raises(PlainFileError, match=says):
        read_run(tmp_path)


def test_changed_weights_are_refused(tmp_path: Path) -> None:
    shutil.copytree(PLAIN, tmp_path, dirs_exist_ok=True)
    data = bytearray((tmp_path / MODEL).read_bytes())
    data[-1] ^= 1
    (tmp_path / MODEL).write_bytes(data)
    with pytest.raises(PlainFileError, match="SHA-256"):
        read_weights(tmp_path, read_run(tmp_path))
