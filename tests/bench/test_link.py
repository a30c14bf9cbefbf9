"""Steps over a link: bytes are counted, what is wrong is not reported, the command prints and writes."""

import json
import os
from functools import partial

import pytest
import torch
from typer.testing import CliRunner

from keyhole.bench.case import Case
from keyhole.bench.checks import CheckFailedError
from keyhole.bench.offload.measure import offload, prompt_lengths
from keyhole.bench.offload.methods import StreamedStorage, linked_layer
from keyhole.bench.offload.tier import ColdBuffer, ColdDisk, Link
from keyhole.cli.app import app
from keyhole.core.errors import SpecError
from keyhole.storage.resident.slots import ResidentSlots

CASE = Case(900, query_heads=4, kv_heads=2, head_dim=16, batch=2)
SIZES = "sinks=16, window=64, budget=192, dense_below=0"
BLOCKS = [f"{name}(block=16, stride=4, {SIZES})" for name in ("infllm_v2", "nosa")]
RESIDENT = 300_000
METHODS = ["dense", *BLOCKS, f"quest(page=16, {SIZES})", f"shadowkv({SIZES})"]


def run(methods=METHODS, case=CASE, **options):
    settings = {"steps": 20, "alike": 0.9, "resident": RESIDENT, "tier": partial(Link, 1e6)}
    return offload(case, methods, **settings | options)


def test_bytes_are_those_that_were_fetched():
    found = dict(zip(("dense", "infllm_v2", "nosa", "quest", "shadowkv"), run(), strict=True))
    assert all(one.steps == 20 and one.batch == 2 for one in found.values())
    dense, lengths = found["dense"], prompt_lengths(CASE)
    assert (dense.shortest, dense.longest) == (min(lengths), 900)
    assert lengths[0] != lengths[1]
    held = sum(900 + 2 + step for step in range(20)) / 20 * CASE.batch * CASE.token_bytes
    assert dense.link_bytes == pytest.approx(held - RESIDENT)
    for one in found.values():
        assert one.crossing == pytest.approx(one.link_bytes * 20 / 1e6)
        assert one.computing > 0
        assert 0 <= one.link_share < 1
    # Beside the slots are the newest tokens, with room for 256 more; keys of nosa have 3 more channels of 16.
    newest = 300 * CASE.batch * CASE.token_bytes * 19 // 16
    for name in ("infllm_v2", "nosa", "quest"):
        one = found[name]
        assert one.device_bytes <= RESIDENT + newest
        assert 0 < one.link_bytes < dense.link_bytes
        assert 0 < one.gamma < 1
        assert 0 < one.hit_rate < 1
    assert found["nosa"].gamma > found["infllm_v2"].gamma


def test_queries_that_stay_fetch_hardly_anything():
    still, moving = (run([BLOCKS[0]], alike=alike)[0] for alike in (1.0, 0.0))
    assert still.link_bytes < moving.link_bytes / 4
    assert still.gamma > moving.gamma


def test_what_is_wrong_is_not_reported(monkeypatch):
    bring = ResidentSlots.bring

    def wrong(*args):
        rows, chosen = bring(*args)
        return rows * 1.1, chosen

    monkeypatch.setattr(ResidentSlots, "bring", wrong)
    with pytest.raises(CheckFailedError, match="over a link"):
        run([BLOCKS[0]])


@pytest.mark.parametrize(
    ("methods", "options", "message"),
    [
        (["snapkv"], {}, "snapkv has no place="),
        (["nonsense"], {}, "unknown method"),
        (["dense"], {"alike": 1.5}, "alike=1.5 is out of range"),
        ([BLOCKS[0]], {"resident": 1000}, "give block_cache= at least"),
    ],
)
def test_what_cannot_be_measured_is_refused(methods, options, message):
    with pytest.raises((ValueError, SpecError), match=message):
        run(methods, **options)


def test_a_link_counts_while_it_is_open():
    link = Link(1000.0)
    link.cross(500)
    assert link.moved == 0
    link.open = True
    link.cross(500)
    link.cross(0)
    assert (link.moved, link.seconds) == (500, 0.5)
    assert isinstance(linked_layer("dense", CASE, link, 0).storage, StreamedStorage)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="there is no posix_fadvise")
def test_a_cold_disk_is_read_for_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    cold, linked = (run(METHODS, tier=tier) for tier in (ColdDisk, partial(Link, 1e6)))
    for disk, link in zip(cold[1:], linked[1:], strict=True):
        assert disk.link_bytes == link.link_bytes > 0
        assert disk.gamma == link.gamma
    assert cold[0].link_bytes == pytest.approx(linked[0].link_bytes + RESIDENT, rel=0.1), (
        "nothing is resident"
    )
    assert all(one.crossing >= 0 and one.computing > 0 for one in cold)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="there is no posix_fadvise")
def test_what_is_out_of_the_page_cache_is_read_again():
    disk, rows = ColdDisk(), torch.arange(4 * 600 * 32.0).view(2, 2, 600, 32)
    buffer = disk.buffer(64)
    assert isinstance(buffer, ColdBuffer)
    buffer.append(rows)
    for _ in range(2):
        disk.begin()
        assert torch.equal(buffer.view(), rows)
        assert torch.equal(buffer.reading(torch.tensor([3, 5]))[:, :, [3, 5]], rows[:, :, [3, 5]])
        disk.end(2.0, 0.5)
    assert disk.moved == 2 * (rows.nbytes + 2 * 32 * 4)
    assert disk.seconds == 3.0
    buffer.view()
    assert disk.moved == 2 * (rows.nbytes + 2 * 32 * 4), "between steps nothing counts"


@pytest.mark.parametrize(
    ("options", "message"),
    [("--tier tape", "not one of link, disk"), ("--tier disk --wait", "are for --tier link")],
)
def test_tiers_that_do_not_fit_are_refused(options, message):
    done = CliRunner().invoke(app, ["bench", "offload", *options.split()])
    assert done.exit_code != 0
    assert message in " ".join(done.output.replace("│", " ").split())


def test_the_command(tmp_path):
    file = tmp_path / "rows.json"
    sizes = "--tokens 900 --kv-heads 2 --query-heads 4 --head-dim 16 --dtype float32"
    words = f"bench offload {sizes} --batch 1 --batch 2 --steps 2 --json {file}"
    methods = [word for method in METHODS[:3] for word in ("--method", method)]
    done = CliRunner().invoke(app, [*words.split(), *methods, "--resident", "200000", "--wait"])
    assert done.exit_code == 0, done.output
    assert "nosa" in done.output
    rows = json.loads(file.read_text())["rows"]
    assert [(row["batch"], row["method"].split("(")[0]) for row in rows] == [
        (batch, name) for batch in (1, 2) for name in ("dense", "infllm_v2", "nosa")
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "nosuch"], "unknown method 'nosuch'"),
        (["--method", "quest(page=0)"], "quest: page=0 is out of range"),
        (["--method", "chess + quest"], "is several methods"),
        (["--bandwidth", "nan"], "nan is not in the range"),
        (["--bandwidth", "0"], "0 is not in the range"),
        (["--alike", "nan"], "nan is not in the range"),
    ],
)
def test_what_is_refused_before_anything_is_measured(options, message, monkeypatch):
    monkeypatch.setattr("keyhole.bench.offload.tier.copying", None)
    result = CliRunner().invoke(app, ["bench", "offload", *options])
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
