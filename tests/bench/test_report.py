"""Rows to files and back, and to Markdown."""

import json
from pathlib import Path

import pytest

from keyhole.bench.report import report
from keyhole.bench.rows import Row, conditions_path, read_conditions, read_rows, write_rows

ROW = Row(
    "scan", "pqcache(bits=4)", "native", 1000, 8, 2, 64, "float32", 100, 2.0, 1 << 21, 0.5, "sdpa", 8.0, 4.0
)
CONDITIONS = {
    "cpu": "Some CPU",
    "cores": 2,
    "threads": 1,
    "isa_level": "avx2",
    "system": "Linux x86_64",
    "versions": {"python": "3.11", "keyhole": "0.1.0"},
    "command": "keyhole bench scan",
    "date": "2025-01-31",
    "notes": ["a note"],
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.json"
    write_rows(path, [ROW], CONDITIONS)
    return path


def test_rows_come_back(file):
    assert read_rows(file) == [ROW]
    assert read_conditions(file) == CONDITIONS
    assert isinstance(json.loads(file.read_text()), list)


def test_files_are_whole_or_not_there(file, monkeypatch):
    def fail(*_):
        raise OSError("no space")

    held = file.read_text()
    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_rows(file, [ROW, ROW], CONDITIONS)
    assert file.read_text() == held
    assert sorted(path.name for path in file.parent.iterdir()) == ["rows.json", "rows.json.conditions"]


def test_report_states_machine_command_date_and_figures(file):
    page = report([file])
    for expected in (
        "# Benchmarks",
        "## Some CPU",
        "2 cores, threads used: 1, native kernels: avx2",
        "python 3.11, keyhole 0.1.0",
        "### `keyhole bench scan`",
        "2025-01-31",
        "- a note",
        "| `pqcache(bits=4)` | native | 1,000 | 8/2 | 64 | float32 | 100 | 2.000 | 2.0 | 50% | sdpa | ",
        " | sdpa | 8.000 | 4.00x |",
    ):
        assert expected in page
    widths = {line.count("|") for line in page.splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_the_page_in_the_documentation_is_of_this_making():
    page = Path(__file__).parents[2] / "docs" / "benchmarks.md"
    assert page.read_text(encoding="utf-8").startswith(report([]))


def test_a_machine_is_told_once(file, tmp_path):
    other = tmp_path / "other.json"
    write_rows(other, [ROW], CONDITIONS | {"command": "keyhole bench scan --seed 1"})
    page = report([file, other])
    assert page.count("## Some CPU") == 1
    assert page.count("\n### ") == 2


def test_what_is_no_file_of_rows_is_refused(file, tmp_path):
    with pytest.raises(ValueError, match="cannot read"):
        report([tmp_path / "missing.json"])
    file.write_text('[{"op": "scan"}]')
    with pytest.raises(ValueError, match="does not hold benchmark rows"):
        report([file])
    file.write_text("[{")
    with pytest.raises(ValueError, match="is not JSON"):
        report([file])
    conditions_path(file).unlink()
    with pytest.raises(ValueError, match="cannot read"):
        report([file])
