"""The benchmarks of a GPU, tried out on the CPU: they run, and what they find is right or told."""

from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from keyhole.bench import shapes
from keyhole.bench.gpu import suite
from keyhole.bench.gpu.prompt import structured
from keyhole.bench.gpu.suite import Plan, run
from keyhole.bench.rows import read_conditions, read_rows
from keyhole.cli import app

METHOD = "pqcache(subspaces=4, bits=4, iterations=1, sinks=2, window=6, dense_below=0)"


@pytest.fixture(autouse=True)
def _small(monkeypatch, tiny):
    monkeypatch.setattr("keyhole.tuning.timing.cache_bytes", lambda *_: 1 << 18)
    monkeypatch.setitem(shapes.SHAPES, "tiny", tiny)


@pytest.fixture
def plan(case, tiny):
    small = replace(case, head_dim=16, batch=1)
    return Plan(small, tiny, METHOD, batches=(1, 2), lengths=(300,), prompts=(200,), rounds=1)


def test_every_part_is_measured_and_written(plan, tmp_path):
    outcomes = run(plan, tmp_path, lambda _: None)
    assert [outcome.failure for outcome in outcomes] == [""] * len(outcomes)
    for outcome in outcomes:
        rows = read_rows(tmp_path / f"{outcome.name}.json")
        assert rows
        assert outcome.name in read_conditions(tmp_path / f"{outcome.name}.json")["command"]
    batches = [row.batch for outcome in outcomes[:2] for result in outcome.results for row in result.rows]
    assert batches == [1, 2]


def test_a_failure_is_told_and_the_others_go_on(plan, monkeypatch):
    monkeypatch.setattr(suite, "scan", lambda *_, **__: 1 / 0)
    failures = {outcome.name: outcome.failure for outcome in run(plan, None, lambda _: None)}
    assert "ZeroDivisionError" in failures.pop("scan")
    assert set(failures.values()) == {""}


def test_nothing_is_begun_when_time_is_over(plan):
    assert all(
        "not begun" in outcome.failure for outcome in run(plan._replace(seconds=0), None, lambda _: None)
    )


def test_a_text_of_topics_is_structured(case):
    query, keys, _ = structured(replace(case, tokens=2000))
    logits = query[0, :1].float() @ keys[0, 0].float().T * case.head_dim**-0.5
    mass = logits.softmax(-1).sort(-1, descending=True).values
    assert float(mass[..., :200].sum(-1).mean()) > 0.9


def test_the_command(tmp_path):
    options = [
        "--device",
        "cpu",
        "--shape",
        "tiny",
        "--tokens",
        "400",
        "--read-tokens",
        "50",
        "--rounds",
        "1",
    ]
    told = CliRunner().invoke(
        app, ["bench", "gpu", *options, "--dtype", "float32", "--method", METHOD, "--json", str(tmp_path)]
    )
    assert told.exit_code == 0, told.output
    assert "sdpa folded" in told.output
    assert len(list(tmp_path.glob("*.conditions"))) == 7


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_told():
    told = CliRunner().invoke(app, ["bench", "gpu"])
    assert told.exit_code == 2
    assert "no GPU" in told.output
