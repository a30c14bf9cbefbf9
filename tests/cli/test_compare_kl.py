import json

import pytest

from keyhole.evaluation import divergence as package
from tests.evaluation.small_text import TEXT

METHODS = "oracle(sinks=2, window=6),snapkv(sinks=2, window=6)"


@pytest.fixture
def arguments(model_folder, tmp_path):
    texts = [tmp_path / f"text{i}.txt" for i in range(2)]
    for i, path in enumerate(texts):
        path.write_text(" ".join(TEXT.sentences)[100 * i :])
    asked = {
        "--model": model_folder,
        "--methods": METHODS,
        "--budgets": "0.1,mass=0.8",
        "--tasks": "kl",
        "--context": 300,
        "--tokens": 4,
        "--text": texts[0],
    }
    return lambda **changes: ["compare", *sum((asked | changes).items(), ()), "--text", texts[1]]


def test_table_json_plot_and_times(keyhole, arguments, tmp_path):
    files = {f"--{name}": tmp_path / "new" / file for name, file in _FILES.items()}
    result = keyhole(*arguments(**files))
    assert result.exit_code == 0, result.output
    for word in ("2 texts x 4 tokens after 300", "dense", "oracle", "mass=0.8", "snapkv", "read per"):
        assert word in result.stdout
    assert "left out: snapkv(sinks=2, window=6) mass=0.8: " in " ".join(result.stderr.split())
    assert "exact mass >= 0.8 in 100.0% of cases" in " ".join(result.stdout.split())
    held = json.loads(files["--json"].read_text())
    assert [(row["task"], row["budget"]) for row in held] == [
        ("kl", "full"), ("kl", "0.1"), ("kl", "mass=0.8"), ("kl", "0.1"),
    ]  # fmt: skip
    assert held[0]["texts"] == ["text0", "text1"]
    assert not [key for key in held[0] if key.endswith(("_s", "_ms"))]
    assert files["--plot"].read_bytes().startswith(b"\x89PNG")
    assert [json.loads(line)["budget"] for line in files["--times"].read_text().splitlines()] == [
        row["budget"] for row in held
    ]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(_FILES.values())


_FILES = {"json": "rows.json", "plot": "plot.png", "times": "times.jsonl"}


@pytest.mark.parametrize("columns", ["100"])
def test_the_table_fits(keyhole, arguments, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    result = keyhole(*arguments(), "--quiet")
    assert result.stderr == ""
    assert max(map(len, result.stdout.splitlines())) <= int(columns)
    assert "..." not in result.stdout
    assert "…" not in result.stdout


def test_a_killed_run_goes_on_to_the_same_file(keyhole, arguments, monkeypatch, tmp_path):
    whole, stopped = tmp_path / "whole.json", tmp_path / "stopped.json"
    assert keyhole(*arguments(**{"--json": whole})).exit_code == 0

    score, calls = package.forced.Reference.score, []

    def dies(self, *args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return score(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(package.forced.Reference, "score", dies)
        assert keyhole(*arguments(**{"--json": stopped})).exit_code == 130
    assert len(json.loads(stopped.read_text())) == 3
    assert keyhole(*arguments(**{"--json": stopped}), "--resume").exit_code == 0
    assert stopped.read_text() == whole.read_text()


def test_resuming_keeps_other_rows(keyhole, arguments, tmp_path):
    rows = tmp_path / "rows.json"
    for context in (300, 200):
        asked = arguments(**{"--json": rows, "--context": context, "--methods": "oracle", "--budgets": "0.1"})
        assert keyhole(*asked, "--resume").exit_code == 0
    assert [row["context"] for row in json.loads(rows.read_text())] == [300, 300, 200, 200]


def test_files_of_separate_runs_are_shown_together(keyhole, arguments, tmp_path):
    files = []
    for method in ("oracle", "snapkv"):
        files += ["--from", tmp_path / f"{method}.json"]
        asked = {"--json": files[-1], "--methods": f"{method}(sinks=2, window=6)", "--budgets": "0.1"}
        assert keyhole(*arguments(**asked)).exit_code == 0
    merged = tmp_path / "merged.json"
    result = keyhole("compare", *files, "--json", merged, "--plot", tmp_path / "plot.png")
    assert result.exit_code == 0, result.output
    assert [row["method"].split("(")[0] for row in json.loads(merged.read_text())] == [
        "dense",
        "oracle",
        "snapkv",
    ]
    assert "snapkv" in result.stdout
    assert (tmp_path / "plot.png").exists()


def test_beside_another_task(keyhole, arguments, tmp_path):
    haystack, plot = tmp_path / "text0.txt", tmp_path / "plot.png"
    changes = {"--tasks": "single,kl", "--haystack": haystack, "--samples": 1, "--budgets": "0.1"}
    result = keyhole(*arguments(**changes, **{"--json": tmp_path / "rows.json", "--plot": plot}))
    assert result.exit_code == 0, result.output
    tasks = [row["task"] for row in json.loads((tmp_path / "rows.json").read_text())]
    assert tasks == ["single", "mean"] * 3 + ["kl"] * 3
    assert plot.exists()
    assert (tmp_path / "plot-kl.png").exists()


def test_all_methods_that_can_run(keyhole, arguments):
    result = keyhole(*arguments(**{"--methods": "all", "--budgets": "0.5", "--tokens": 1}))
    assert result.exit_code == 0, result.output
    for name in ("pqcache", "shadowkv", "criticalkv + snapkv", "sale", "quantised", "h2o"):
        assert f"\n {name}" in result.stdout or f"left out: {name}" in result.stderr


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--context": 30000}, "the model has 1024"),
        ({"--context": 900, "--text": "/nowhere/text"}, "/nowhere/text"),
        ({"--tokens": 0}, "--tokens"),
        ({"--batch": 0}, "--batch"),
        ({"--from": "/nowhere/rows.json"}, "/nowhere/rows.json"),
        ({"--tasks": "kll"}, "there are: kl, single"),
    ],
)
def test_bad_input(refused, arguments, changes, said):
    assert said in " ".join(refused(*arguments(**changes)).split())


def test_texts_that_are_too_short_are_named(refused, arguments, tmp_path):
    brief = tmp_path / "brief.txt"
    brief.write_text("brief")
    assert "brief (5)" in refused(*arguments(**{"--text": brief}))


def test_resuming_needs_a_file_and_the_task_alone(refused, arguments, tmp_path):
    assert "--json FILE" in refused(*arguments(), "--resume")
    mixed = arguments(**{"--tasks": "kl,single", "--json": tmp_path / "rows.json"})
    assert "--tasks kl" in " ".join(refused(*mixed, "--resume").split())


def test_more_texts_than_there_are(refused, model_folder):
    found = refused("compare", "--model", model_folder, "--tasks", "kl", "--texts", 500)
    assert "--texts 500" in found
