"""Runs: answers, sharing, rows that a stopped run goes on from, and their summary."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

from keyhole.evaluation.benchmarks import Settings, evaluate, prepare, summarise
from keyhole.evaluation.benchmarks.picture import cells, draw
from keyhole.generation import loading, reader
from tests.evaluation.benchmarks import small_files
from tests.evaluation.small_text import byte_model, byte_tokenizer


def _loaded() -> loading.Loaded:
    return loading.Loaded(byte_model(), byte_tokenizer())


def _run(settings: Settings, methods=("dense",), answers=None):
    return evaluate(_loaded(), prepare(settings), methods, model="tiny", answers=answers)


@pytest.fixture
def read(monkeypatch):
    """Counts the tokens that are prefilled as a prompt or a piece of one."""
    counted = Counter()
    real = reader.prefill

    def count(model, tokens, *args, **options):
        counted["tokens"] += tokens.shape[1]
        counted["calls"] += 1
        return real(model, tokens, *args, **options)

    monkeypatch.setattr(reader, "prefill", count)
    return counted


@pytest.mark.parametrize("method", ["dense", "pqcache(budget=1.0,dense_below=0)", "snapkv(budget=1.0)"])
def test_answers_are_those_of_transformers(method, tmp_path):
    small_files.longbench(tmp_path)
    result = _run(Settings("longbench", tmp_path, tasks=["hotpotqa"]), [method])
    found = prepare(Settings("longbench", tmp_path, tasks=["hotpotqa"]))
    for row, sample in zip(result.rows, found.samples("hotpotqa"), strict=True):
        tokens = byte_tokenizer()(sample.prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            plain = byte_model().generate(tokens, max_new_tokens=32, do_sample=False, pad_token_id=0)
        assert row.answer == byte_tokenizer().decode(plain[0, tokens.shape[1] :], skip_special_tokens=True)
        assert row.prompt_tokens == tokens.shape[1]


def test_a_shared_context_is_read_once(tmp_path, read):
    small_files.longbench(tmp_path)
    result = _run(Settings("longbench", tmp_path, tasks=["hotpotqa"]))
    lengths = [row.prompt_tokens for row in result.rows]
    assert read["tokens"] < sum(lengths) - len(small_files.CONTEXT) + 40


def test_what_drops_tokens_reads_each_prompt_whole(tmp_path, read):
    small_files.longbench(tmp_path)
    result = _run(Settings("longbench", tmp_path, tasks=["hotpotqa"]), ["snapkv(budget=0.5)"])
    assert read["tokens"] == sum(row.prompt_tokens - 1 for row in result.rows)


@pytest.mark.parametrize("requests", [False, True])
def test_turns_read_their_context_once(tmp_path, read, requests):
    small_files.scbench(tmp_path)
    result = _run(Settings("scbench", tmp_path, requests=requests), ["snapkv(budget=0.5)"])
    assert [row.groups["turn"] for row in result.rows] == ["1", "2", "3"]
    assert read["tokens"] < result.rows[0].prompt_tokens + 120
    groups = [(line.group, line.answers) for line in summarise(result.rows)]
    assert groups == [("all", 3), ("turn=1", 1), ("turn=2", 1), ("turn=3", 1)]


def test_what_is_too_long_is_refused_with_a_count(tmp_path):
    small_files.ruler(tmp_path)
    long = {"index": 9, "input": "x" * 2000, "outputs": ["1"]}
    small_files.write_lines(tmp_path / "fwe/validation.jsonl", long)
    result = _run(Settings("ruler", tmp_path, tasks=["fwe", "qa_1"]))
    by_task = {line.task: line for line in summarise(result.rows)}
    assert (by_task["fwe"].answers, by_task["fwe"].refused, by_task["fwe"].score) == (0, 1, None)
    assert (by_task["qa_1"].answers, by_task["mean"].score) == (1, by_task["qa_1"].score)
    assert "1 of 2 questions were refused" in result.notes[0]


RENUMBERED = "pqcache(budget=64,sinks=4,window=32,chunk=32,renumber=true,sparse_prefill=true)"


def test_methods_that_renumber_read_prompts_beyond_the_range_whole(tmp_path):
    small_files.ruler(tmp_path)
    long = {"index": 9, "input": "x" * 2000, "outputs": ["1"]}
    small_files.write_lines(tmp_path / "fwe/validation.jsonl", long)
    huge = RENUMBERED.replace("budget=64", "budget=0.9")
    result = _run(Settings("ruler", tmp_path, tasks=["fwe"]), ["dense", RENUMBERED, huge])
    dense, renumbered, too_much = result.rows
    assert "beyond the model's range of 1,024" in dense.refused
    assert (renumbered.refused, renumbered.prompt_tokens) == ("", 2000)
    assert 0 < renumbered.tokens_read < 0.1 * renumbered.tokens_in_context
    assert "give a budget of at most" in too_much.refused


def test_only_methods_that_renumber_keep_what_others_have_cut(tmp_path):
    small_files.infinitebench(tmp_path, context="x" * 2000)
    result = _run(Settings("infinitebench", tmp_path, tasks=["passkey"]), ["dense", RENUMBERED])
    assert [row.cut_tokens > 0 for row in result.rows] == [True, False]
    assert result.rows[1].prompt_tokens > 2000


def test_a_cut_prompt_is_counted(tmp_path):
    small_files.infinitebench(tmp_path)
    result = _run(Settings("infinitebench", tmp_path, tasks=["passkey"], max_length=50))
    (row,) = result.rows
    assert (row.prompt_tokens, row.cut_tokens > 0) == (50, True)
    assert any("cut in the middle" in note for note in result.notes)
    assert summarise(result.rows)[0].cut == 1


def test_a_stopped_run_goes_on(tmp_path, read):
    small_files.ruler(tmp_path / "data")
    settings, answers = Settings("ruler", tmp_path / "data"), tmp_path / "answers.jsonl"
    whole = _run(settings, ["dense", "oracle"], answers)
    lines = answers.read_text().splitlines(keepends=True)
    assert len(lines) == 1 + len(whole.rows)
    answers.write_text("".join(lines[:3]) + lines[3][:40])  # the process ended within a line
    read.clear()
    again = _run(settings, ["dense", "oracle"], answers)
    assert [(row.key, row.answer, row.score) for row in again.rows] == [
        (row.key, row.answer, row.score) for row in whole.rows
    ]
    assert read["calls"]
    assert len(answers.read_text().splitlines()) == len(lines)
    read.clear()
    assert _run(settings, ["dense", "oracle"], answers).rows == again.rows
    assert not read


def test_more_samples_and_methods_may_be_added(tmp_path):
    small_files.ruler(tmp_path / "data")
    settings, answers = Settings("ruler", tmp_path / "data", limit=1), tmp_path / "answers.jsonl"
    first = _run(settings, ["dense"], answers)
    more = _run(replace(settings, limit=None), ["dense", "oracle"], answers)
    assert set(row.key for row in first.rows) < set(row.key for row in more.rows)


def test_changed_data_are_asked_again(tmp_path):
    small_files.ruler(tmp_path / "data")
    settings, answers = Settings("ruler", tmp_path / "data", tasks=["qa_1"]), tmp_path / "answers.jsonl"
    (before,) = _run(settings, answers=answers).rows
    changed = {"index": 0, "input": "Another prompt.", "outputs": ["sea"]}
    small_files.write_lines(tmp_path / "data/qa_1/validation.jsonl", changed)
    (after,) = _run(settings, answers=answers).rows
    assert before.digest != after.digest
    assert after.prompt_tokens == len("Another prompt.")


def test_rows_of_other_settings_are_refused(tmp_path):
    small_files.ruler(tmp_path / "data")
    settings, answers = Settings("ruler", tmp_path / "data", tasks=["qa_1"]), tmp_path / "answers.jsonl"
    _run(settings, answers=answers)
    with pytest.raises(ValueError, match="max_length was None, is 9"):
        _run(replace(settings, max_length=9), answers=answers)
    answers.write_text("something else\n")
    with pytest.raises(ValueError, match="is not a file of answers"):
        _run(settings, answers=answers)


def test_damaged_rows_are_refused(tmp_path):
    small_files.ruler(tmp_path / "data")
    settings, answers = Settings("ruler", tmp_path / "data", tasks=["qa_1"]), tmp_path / "answers.jsonl"
    _run(settings, answers=answers)
    answers.write_text(answers.read_text().splitlines()[0] + "\n{}\n")
    with pytest.raises(ValueError, match="damaged in line 2"):
        _run(settings, answers=answers)


def test_unknown_tasks_are_found_before_a_model_is_asked(tmp_path):
    small_files.ruler(tmp_path)
    with pytest.raises(ValueError, match="there is no task 'cwe'; there are: qa_1, vt"):
        prepare(Settings("ruler", tmp_path, tasks=["cwe"]))


def test_a_grid_and_its_picture(tmp_path):
    settings = Settings("niah", lengths=(200, 300), depths=(0, 100))
    result = _run(settings, ["dense", "oracle(budget=0.2)"])
    assert len(result.rows) == 8
    dense, oracle = (line for line in summarise(result.rows) if line.group == "all")
    assert dense.read_fraction == 1
    assert 0.1 < oracle.read_fraction < 0.6  # it selects at any length
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    draw(result.rows, tmp_path / "grid.png")
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")


def test_cells(tmp_path):
    small_files.longbench2(tmp_path)
    (row, _) = _run(Settings("longbench-v2", tmp_path)).rows
    placed = [
        replace(row, score=score, groups={"length": length, "depth": depth})
        for length, depth, score in [("8", "0", 1.0), ("8", "0", 0.0), ("16", "50", 1.0), ("16", "0", None)]
    ]
    found = cells(placed, [8, 16], [0, 50])
    assert json.dumps(found) == "[[50.0, NaN], [NaN, 100.0]]"
    with pytest.raises(ValueError, match="nothing to draw"):
        draw([row], tmp_path / "x.png")
