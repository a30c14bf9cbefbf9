"""The README's Python runs as it stands there, and names every method and command."""

import re
import shlex
from pathlib import Path

import typer

import keyhole
from keyhole.cli import app

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_python_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 2
    names = {}
    for block in blocks:
        exec(block, names)
    assert "Usage(steps=" in capsys.readouterr().out
    assert (tmp_path / "my-cache" / "cache.safetensors").exists()


def test_every_method_is_in_the_table():
    named = set(re.findall(r"^\| `(\w+)` \|", README, flags=re.MULTILINE))
    assert set(keyhole.METHODS) <= named


def test_commands_and_options_exist():
    command = typer.main.get_command(app)
    for line in re.findall(r"^keyhole (.+)$", README, flags=re.MULTILINE):
        words, at = shlex.split(line, comments=True), command
        while getattr(at, "commands", None):
            at = at.commands[words.pop(0)]
        known = {option for parameter in at.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known
