"""Memory of a process: what is reported is consistent, and what cannot be told is refused."""

import json

import pytest
from typer.testing import CliRunner

from keyhole.bench import memory as module
from keyhole.bench import shapes
from keyhole.cli import app


def test_a_prompt_in_a_process_of_its_own(tiny):
    (found,) = module.memory(tiny, ["snapkv(budget=64)"], tokens=600, piece=100, dtype="float32", threads=1)
    kept = 64 * 2 * 2 * 2 * 16 * 4
    assert (found.tokens, found.piece, found.kept) == (600, 100, kept)
    assert kept <= found.held <= 3 * kept
    assert found.peak > 0
    assert found.seconds > 0


def test_the_command_prints_and_writes(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(shapes.SHAPES, "tiny", tiny)
    figures = module.Memory("dense", 20, 10, 1 << 20, 2 << 20, 3 << 20, 3 << 20, 1.5)
    monkeypatch.setattr(module, "memory", lambda *_, **__: [figures])
    file = tmp_path / "memory.json"
    result = CliRunner().invoke(app, ["bench", "memory", "--shape", "tiny", "--json", str(file)])
    assert result.exit_code == 0, result.output
    assert "1.0 MiB" in result.stdout
    assert json.loads(file.read_text())[0]["held"] == 2 << 20


def test_refused_where_the_system_does_not_tell(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_CLEAR", tmp_path / "none")
    with pytest.raises(ValueError, match="Linux"):
        module.memory(tiny, ["dense"], tokens=10, piece=5, dtype="float32", threads=1)


def test_a_method_is_read_before_any_work(tiny):
    with pytest.raises(ValueError, match="snapkw"):
        module.memory(tiny, ["snapkw"], tokens=10, piece=5, dtype="float32", threads=1)


@pytest.mark.slow
def test_what_is_dropped_is_given_back_to_the_system():
    """Two layers hold 32 MiB of a prompt of 4,096 tokens, or next to nothing of it, at any time."""
    wide = shapes.Shape("llama", 64, 64, 2, 8, 8, 64, 97, tied=True)
    dense, dropping = module.memory(
        wide, ["dense", "snapkv(budget=64)"], tokens=4096, piece=256, dtype="float32", threads=1
    )
    assert dense.held > 30 << 20
    assert dropping.held < 2 << 20
    assert dense.peak - dropping.peak > 20 << 20
    assert dense.left - dropping.left > 20 << 20
