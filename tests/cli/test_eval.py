"""`keyhole eval`, end to end on a tiny model."""

import json
from typing import get_args

import pytest

from keyhole.cli.eval import _GRIDS, Name
from tests.evaluation.benchmarks import small_files


@pytest.fixture
def arguments(model_folder, tmp_path):
    small_files.ruler(tmp_path / "data")

    def made(**changes):
        given = {"--benchmark": "ruler", "--data": tmp_path / "data", "--model": model_folder, "--threads": 1}
        given |= {"--method": "dense,oracle(budget=0.5)", **changes}
        return ["eval", *(part for pair in given.items() for part in pair)]

    return made


def test_names_are_those_of_the_benchmarks():
    from keyhole.evaluation.benchmarks import BENCHMARKS

    assert sorted(get_args(Name)) == sorted(BENCHMARKS)
    assert sorted(_GRIDS) == sorted(name for name, kind in BENCHMARKS.items() if kind.is_grid)


def test_scores_and_answers(keyhole, arguments, tmp_path):
    result = keyhole(*arguments(**{"--json": tmp_path / "out/scores.json"}))
    assert result.exit_code == 0, result.output
    assert "vt" in result.stdout
    lines = json.loads((tmp_path / "out/scores.json").read_text())
    assert [(line["method"], line["task"], line["answers"]) for line in lines] == [
        ("dense", "qa_1", 1),
        ("dense", "vt", 2),
        ("dense", "mean", 3),
        ("oracle(budget=0.5)", "qa_1", 1),
        ("oracle(budget=0.5)", "vt", 2),
        ("oracle(budget=0.5)", "mean", 3),
    ]
    assert {"benchmark", "model", "dtype", "seed", "chat", "keyhole", "notes"} <= lines[0].keys()
    assert len((tmp_path / "out/scores.answers.jsonl").read_text().splitlines()) == 7
    again = keyhole(*arguments(**{"--json": tmp_path / "out/scores.json"}), "--quiet")
    assert again.exit_code == 0
    assert json.loads((tmp_path / "out/scores.json").read_text()) == lines


def test_notes_go_to_stderr(keyhole, arguments, tmp_path):
    small_files.scbench(tmp_path / "sc")
    result = keyhole(*arguments(**{"--benchmark": "scbench", "--data": tmp_path / "sc", "--method": "dense"}))
    assert result.exit_code == 0, result.output
    assert "not comparable with published ones" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"--benchmark": "rulers"}, "rulers"),
        ({"--data": "/nowhere/data"}, "'/nowhere/data' is not a directory"),
        ({"--method": "pqcach"}, "did you mean 'pqcache'"),
        ({"--method": ","}, "no method is given"),
        ({"--tasks": "cwe"}, "there is no task 'cwe'"),
        ({"--lengths": "12,x"}, "--lengths 'x' is out of range"),
        ({"--depths": "0,101"}, "--depths '101' is out of range; give whole numbers from 0 to 100"),
        ({"--plot": "grid.png"}, "--plot is for niah and needlebench"),
        ({"--limit": 0}, "--limit"),
        ({"--model": "/nowhere/model"}, "no model directory or file"),
    ],
)
def test_bad_input(refused, arguments, changes, said):
    assert said in " ".join(refused(*arguments(**changes)).split())


def test_data_are_needed(refused, model_folder):
    assert "--data DIR" in refused("eval", "--benchmark", "ruler", "--model", model_folder)


def test_lm_eval_that_is_not_installed(refused, monkeypatch):
    monkeypatch.setattr("keyhole.cli.lm_eval.find_spec", lambda _: None)
    said = refused("lm-eval", "--model", "keyhole", "--tasks", "x", "--model_args", "pretrained=y")
    assert "pip install 'keyhole[lm-eval]'" in said
