"""`keyhole bench` as users call it."""

import json

import pytest
from typer.testing import CliRunner

from keyhole import kernels
from keyhole.bench import shapes
from keyhole.cli import app
from keyhole.cli.inputs import SHIPPED

SMALL = ["--tokens", "500", "--query-heads", "4", "--kv-heads", "2", "--head-dim", "32", "--rounds", "1"]
SMALL += ["--threads", "1"]
PQ = ["--method", "pqcache(subspaces=4, bits=4, iterations=1)"]
EMBEDDED = str(SHIPPED)
READ = ["--read-tokens", "100"]


@pytest.fixture(autouse=True)
def _small(monkeypatch, tiny):
    monkeypatch.setattr("keyhole.tuning.timing.cache_bytes", lambda *_: 1 << 18)
    monkeypatch.setitem(shapes.SHAPES, "tiny", tiny)


def bench(*words):
    return CliRunner().invoke(app, ["bench", *words])


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        (["decode", *SMALL, *PQ, *READ], 2),
        (["paged", *SMALL, *PQ, *READ], 1),
        (["scan", *SMALL, *PQ, *READ], None),
        (["gather", *SMALL, *READ], 10),
        (["build", *SMALL, *PQ], 1),
        (["gemv", "--rows", "50", "--columns", "20", "--active", "0.2,0.4", "--rounds", "1"], 8),
        (["products", "--shape", "tiny", "--vectors", "2", "--rounds", "1"], None),
        (["step", "--shape", "tiny", "--tokens", "300", "--rounds", "1", *PQ, "--method", "all"], None),
        (["step", "--shape", "tiny", "--tokens", "300", "--rounds", "1", *PQ, "--weights", "int4"], None),
        (["prompt", "--shape", "tiny", "--tokens", "30", "--rounds", "1"], 1),
        (["prompt", "--model", EMBEDDED, "--tokens", "90", "--rounds", "1", *PQ, "--method", "sale"], 2),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_commands_print_a_table_and_write_rows(tmp_path, words, rows):
    file = tmp_path / "out" / "rows.json"
    result = bench(*words, "--json", str(file))
    assert result.exit_code == 0, result.output
    assert f"{words[0]}: " in result.stdout
    assert "medians of 1 rounds" in result.stderr
    written = json.loads(file.read_text())
    assert {row["op"] for row in written} == {words[0]}
    assert rows is None or len(written) == rows
    page = bench("report", str(file))
    assert page.exit_code == 0
    assert f"### `keyhole bench {words[0]} " in page.stdout
    assert str(tmp_path) not in page.stdout


def test_quiet_leaves_the_notes_out():
    result = bench("gather", *SMALL, *READ, "--quiet")
    assert result.exit_code == 0
    assert result.stderr == ""


def test_a_wrong_operation_ends_with_1_and_no_file(monkeypatch, tmp_path):
    right = kernels.gather_attention

    def wrong(*args, impl="auto", **kwargs):
        found = right(*args, impl=impl, **kwargs)
        return found if impl == "reference" else found._replace(out=-found.out)

    monkeypatch.setattr(kernels, "gather_attention", wrong)
    result = bench("gather", *SMALL, *READ, "--json", str(tmp_path / "rows.json"))
    assert result.exit_code == 1
    assert "no time is reported" in result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["decode", "--dtype", "int8"], "'int8' is not one of"),
        (["decode", *SMALL, "--method", "pq"], "unknown method 'pq'"),
        (["gemv", "--active", "some"], "--active 'some'"),
        (["step", "--shape", "tinny"], "did you mean tiny"),
        (["step", "--shape", "Llama-3.1-8B", "--tokens", "1000000000"], "GiB are free"),
        (["prompt", "--text", "some.txt"], "--text has an effect only together with --model"),
        (["prompt", "--model", EMBEDDED, "--layers", "1"], "--layers has an effect not together with"),
        (["prompt", "--model", EMBEDDED, "--tokens", "999999"], "tokens, not 999999"),
        (["report", "missing.json"], "cannot read missing.json"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_what_users_can_mend_ends_with_2(words, said):
    result = bench(*words)
    assert result.exit_code == 2
    assert said in result.stderr
