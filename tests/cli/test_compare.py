import json

import pytest

from tests.evaluation.small_text import TEXT
from tests.evaluation.test_comparison import KEYS

METHODS = "oracle(sinks=2, window=6)"


@pytest.fixture
def arguments(model_folder, tmp_path):
    haystack = tmp_path / "haystack.txt"
    haystack.write_text(" ".join(TEXT.sentences))
    asked = {
        "--model": model_folder,
        "--methods": METHODS,
        "--budgets": "0.1,mass=0.8",
        "--tasks": "single",
        "--context": 300,
        "--samples": 1,
        "--haystack": haystack,
    }
    return lambda **changes: ["compare", *sum((asked | changes).items(), ())]


@pytest.fixture
def interrupted(monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("keyhole.evaluation.comparison.Prompt", stop)


def test_table_json_and_plot(keyhole, arguments, tmp_path):
    rows, plot = tmp_path / "new" / "rows.json", tmp_path / "plot.png"
    result = keyhole(*arguments(**{"--json": rows, "--plot": plot}))
    assert result.exit_code == 0, result.output
    for word in ("dense", METHODS, "full", "0.1", "mass=0.8", "mean", "1 prompt of 300 tokens"):
        assert word in result.stdout
    assert "exact mass >= 0.8 in 100.0% of cases" in result.stdout
    assert f"wrote {rows}" in result.stderr
    held = json.loads(rows.read_text())
    assert [list(row) for row in held] == [KEYS] * 6
    assert [row["budget"] for row in held] == ["full", "full", "0.1", "0.1", "mass=0.8", "mass=0.8"]
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in rows.parent.iterdir()) == ["rows.json"]


def test_quiet_leaves_the_table(keyhole, arguments):
    result = keyhole(*arguments(), "--quiet")
    assert "mean" in result.stdout
    assert "exact mass" not in result.stdout
    assert result.stderr == ""


def test_every_task_when_asked(keyhole, arguments):
    assert "single" in keyhole(*arguments(), "--by-task", "--quiet").stdout


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--methods": "pqcach"}, "did you mean 'pqcache'"),
        ({"--methods": "pqcache(subspace=2)"}, "did you mean 'subspaces'"),
        ({"--methods": "pqcache(bits=99)"}, "1 to 8"),
        ({"--budgets": "1.5"}, "1.5"),
        ({"--budgets": "much"}, "much"),
        ({"--tasks": "singel"}, "unknown task 'singel'"),
        ({"--context": 30}, "needs at least"),
        ({"--context": 5000}, "the model has 1024"),
        ({"--samples": 0}, "--samples"),
        ({"--model": "/nowhere/model"}, "no model directory or file '/nowhere/model'"),
        ({"--haystack": "/nowhere/text"}, "/nowhere/text"),
        ({"--plot": "plot.bmp"}, "plot.bmp"),
    ],
)
def test_bad_input(refused, arguments, changes, said):
    assert said in " ".join(refused(*arguments(**changes)).split())


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_unwritable_output_is_found_before_the_work(refused, arguments, interrupted, option, tmp_path):  # noqa: ARG001
    assert option in refused(*arguments(**{option: tmp_path / "haystack.txt" / "out.png"}))
    assert "is a directory" in refused(*arguments(**{option: tmp_path}))


def test_an_interrupted_run_leaves_files_alone(keyhole, arguments, interrupted, tmp_path):  # noqa: ARG001
    rows = tmp_path / "rows.json"
    rows.write_text("before")
    result = keyhole(*arguments(**{"--json": rows, "--plot": tmp_path / "plot.png"}))
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
    assert rows.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["haystack.txt", "rows.json"]


def test_without_matplotlib(refused, arguments, monkeypatch, tmp_path):
    monkeypatch.setattr("keyhole.cli.outputs.find_spec", lambda _: None)
    assert "pip install 'keyhole[plot]'" in refused(*arguments(**{"--plot": tmp_path / "plot.png"}))
