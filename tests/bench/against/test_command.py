"""`keyhole bench against`: what it refuses before anything is loaded, and a whole run on a small file."""

import json

import pytest
from typer.testing import CliRunner

from keyhole.bench.against import engines as named
from keyhole.bench.against.figures import read_figures
from keyhole.bench.against.shape_file import write_shape
from keyhole.bench.shapes import Shape
from keyhole.cli import app

pytest.importorskip("gguf", reason="GGUF files are written by the package gguf")


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["bench", "against", *arguments])
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


@pytest.fixture
def file(tmp_path) -> str:
    write_shape(Shape("llama", 64, 96, 2, 4, 2, 16, 600, tied=True), "q8_0", tmp_path / "m.gguf")
    return str(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gguf", "a.gguf", "--shape", "Llama-3.2-1B"], "one of the two"),
        (["--file-type", "q4_0"], "--file-type has an effect only together with --shape"),
        (["--shape", "Llama-3.2-1B", "--text", "a.txt"], "--text has an effect not together"),
        (["--shape", "Llama-3.2-1C"], "did you mean Llama-3.2-1B"),
        (["--shape", "Qwen3-0.6B", "--file-type", "q5_0"], "q5_0"),
        (["--lengths", "512,many"], "512,many"),
        (["--lengths", "512,0"], "0 is out of range; give at least 2"),
        (["--lengths=-5"], "-5 is out of range; give at least 2"),
        (["--weights", "int5"], "'int5' are not one of int8, int4, as-is"),
        (["--engine", "llama"], "did you mean 'llama.cpp'"),
        (["--method", "pqcash"], "pqcash"),
        (["--plot", "a.txt"], "must end in"),
        (["--gguf", "none.gguf"], "none.gguf"),
    ],
)
def test_refused_at_once(arguments, message, tmp_path, monkeypatch):
    monkeypatch.setenv("KEYHOLE_HOME", str(tmp_path))
    assert message in refused(*arguments)
    assert not list(tmp_path.rglob("*.gguf"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lengths", "512,200000"], "length 200000 is out of range; give 2 to 13"),
        (["--dtype", "float8"], "float8"),
        (["--engine", "transformers", "--lengths", "132000", "--rounds", "1", "--method", "dense"], "GiB"),
    ],
)
def test_refused_of_a_file(arguments, message, file, monkeypatch):
    monkeypatch.setattr("keyhole.tuning.machine.free_bytes", lambda *_: 1 << 20)
    assert message in refused("--gguf", file, *arguments)


def test_vllm_needs_a_prompt_as_long_as_all_lengths(file, monkeypatch):
    monkeypatch.setattr(named, "find_spec", lambda _: True)
    asked = ["--engine", "vllm", "--lengths", "300,900", "--prompt", "300"]
    assert "--prompt 900" in refused("--gguf", file, *asked)


@pytest.mark.slow
def test_a_whole_run(file, tmp_path, monkeypatch):
    monkeypatch.setenv("KEYHOLE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(named, "find_spec", lambda name: None if name == "llama_cpp" else True)
    output, plot = tmp_path / "f.json", tmp_path / "f.svg"
    words = "--method dense --threads 1 --lengths 64,300 --prompt 100 --rounds 2 --steps 3"
    many = ["--engine", "transformers", "--engine", "llama.cpp", "--json", str(output), "--plot", str(plot)]
    result = CliRunner().invoke(app, ["bench", "against", "--gguf", file, *words.split(), *many])
    assert result.exit_code == 0, result.output
    assert "llama.cpp is left out" in result.stderr
    assert "300 (synthetic)" in result.stdout
    measured = read_figures(output)
    assert [(one.engine, one.tokens) for one in measured.figures] == [
        ("keyhole dense", 64),
        ("transformers", 64),
        ("keyhole dense", 300),
        ("transformers", 300),
    ]
    assert measured.conditions["threads"] == 1
    assert measured.conditions["command"].endswith("--prompt 100 --rounds 2 --steps 3 --threads 1")
    assert json.loads(output.read_text())["conditions"]["file"] == "m.gguf"
    assert plot.read_text().count("<path") > 10
