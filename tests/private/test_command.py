"""`keyhole private export`: what it refuses before a model is loaded."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from keyhole.cli import app

exports = pytest.mark.skipif(find_spec("torch") is None, reason="export reads a model, which takes torch")


@exports
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text", "nosuch"], "no text named 'nosuch'"),
        (["--model", "@int8"], "packed weights cannot be shared"),
        (["--method", "nosuch"], "unknown method 'nosuch'"),
    ],
)
def test_refused_at_once(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keyhole.cli.inputs.load", None)
    result = CliRunner().invoke(app, ["private", "export", str(tmp_path / "out"), *options])
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())


@exports
def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keyhole.cli.inputs.load", None)
    (tmp_path / "out").write_text("a file")
    result = CliRunner().invoke(app, ["private", "export", str(tmp_path / "out")])
    assert result.exit_code == 2, result.output
    assert "is a file, not a folder" in " ".join(result.output.split())


def test_a_timeout_that_is_no_number(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["private", "run", str(tmp_path), "--timeout", "nan"])
    assert result.exit_code == 2, result.output
    assert "nan is not in the range" in " ".join(result.output.split())
