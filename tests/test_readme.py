"""The README's Python prints what the README shows, and it names every method and existing commands only."""

import re
import shlex
from pathlib import Path

import typer

import keyhole
from keyhole.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# A snippet, and what it prints.
PRINTS = re.compile(r"```python\n(.*?)```\n\nprints\n\n```\n(.*?)```", flags=re.DOTALL)


def test_the_python_prints_what_is_shown(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    snippets = PRINTS.findall(README)
    assert len(snippets) == README.count("```python") >= 2
    names = {}
    for code, shown in snippets:
        exec(code, names)
        assert capsys.readouterr().out == shown
    # Selected, and not everything read because a text is short.
    assert all(0 < answer.read_fraction < 0.1 for answer in names["answers"])
    assert 0 < names["attached"].usage.read < 0.2 * names["attached"].usage.tokens
    assert list(tmp_path.iterdir()) == []


def test_every_method_is_in_the_table():
    named = set(re.findall(r"^\| `(\w+)` \| [^|]*(?:arXiv|et al|exact)", README, flags=re.MULTILINE))
    assert set(keyhole.METHODS) <= named


def test_every_method_string_can_be_read():
    kinds = "|".join(keyhole.METHODS)
    for spec in re.findall(rf"`((?:{kinds})\b[^`]*)`", README):
        if set(spec) & set("(+"):
            keyhole.Recipe.parse(spec)


def test_commands_and_options_exist():
    command = typer.main.get_command(app)
    for line in re.findall(r"^keyhole (.+)$", README, flags=re.MULTILINE):
        words, at = shlex.split(line, comments=True), command
        while getattr(at, "commands", None):
            at = at.commands[words.pop(0)]
        known = {option for parameter in at.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
