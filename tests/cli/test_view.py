"""`keyhole view`, and the records and pages of `generate` and `ask`."""

import re

import pytest

from keyhole.view import read_record
from tests.cli.test_generate import METHOD


@pytest.fixture
def asked(model_folder, prompt_file):
    return [
        *("generate", "--model", model_folder, "--prompt-file", prompt_file, "--question", "The sea is"),
        *("--method", METHOD, "--max-new-tokens", 4, "--quiet"),
    ]


def records_of(path):
    return re.findall(r'class="record">(.*?)</script>', path.read_text(), re.DOTALL)


def test_files_beside_an_answer(keyhole, asked, tmp_path):
    page, run = tmp_path / "new" / "out.html", tmp_path / "run.json"
    plain = keyhole(*asked)
    told = keyhole(*asked, "--view", page, "--record", run, "--exact-mass")
    assert (told.exit_code, told.stdout, told.stderr) == (0, plain.stdout, "")
    record = read_record(run)
    assert len(record.steps) == 4
    assert record.steps[0].exact is not None
    assert len(records_of(page)) == 1


def test_a_page_of_two_records(keyhole, asked, tmp_path):
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    for run in (one, other):
        assert keyhole(*asked, "--record", run).exit_code == 0
    result = keyhole("view", one)
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'one.html'}\n")
    keyhole("view", one, other, "--out", tmp_path / "both.html")
    assert [len(records_of(tmp_path / name)) for name in ("one.html", "both.html")] == [1, 2]


def test_a_stored_document(keyhole, model_folder, prompt_file, tmp_path):
    run = tmp_path / "run.json"
    result = keyhole(
        *("ask", prompt_file, "The sea is", "--model", model_folder, "--method", METHOD, "--quiet"),
        *("--store", tmp_path / "store", "--max-new-tokens", 2, "--record", run),
    )
    assert result.exit_code == 0, result.output
    assert set(read_record(run).tiers) == {"disk"}


def test_bad_input_is_found_first(refused, asked, tmp_path, prompt_file):
    assert "no record of a run" in refused("view", prompt_file)
    assert "nowhere" in refused("view", tmp_path / "nowhere.json")
    assert "give 1 or 2" in refused("view", "a", "b", "c")
    assert "is a directory" in refused(*asked, "--view", tmp_path)
    assert "--view FILE.html" in refused(*asked, "--exact-mass")
    same = tmp_path / "same"
    assert "give two files" in refused(*asked, "--view", same, "--record", same)
