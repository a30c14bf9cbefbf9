"""Python on the pages runs and prints what they show; commands, options and method strings on them exist."""

import re
import shlex

import pytest
import typer

import keyhole
from keyhole.cli import app
from tests.docs import DOCS

PAGES = {str(path.relative_to(DOCS)): path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))}
# Records of what was run at the time.
LIVE = {name: text for name, text in PAGES.items() if name not in ("LOG.md", "benchmarks.md")}
BLOCK = re.compile(r"```python\n(.*?)```(?:\n\nprints\n\n```\n(.*?)```)?", flags=re.DOTALL)
KINDS = "|".join(keyhole.METHODS)


@pytest.mark.parametrize("page", [name for name, text in LIVE.items() if "```python" in text])
def test_the_python_runs(page, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for code, shown in BLOCK.findall(LIVE[page]):
        exec(code, names)
        printed = capsys.readouterr().out
        assert not shown or printed == shown


def test_commands_and_options_exist():
    command = typer.main.get_command(app)
    for page, text in LIVE.items():
        for line in re.findall(r"^keyhole (.+)$", text.replace("\\\n", " "), flags=re.MULTILINE):
            words, at = shlex.split(line, comments=True), command
            while words and getattr(at, "commands", None):
                assert words[0] in at.commands, (page, line)
                at = at.commands[words.pop(0)]
            if at.context_settings.get("ignore_unknown_options"):
                continue  # another program's options
            known = {
                option for parameter in at.params for option in (*parameter.opts, *parameter.secondary_opts)
            }
            assert {word for word in words if word.startswith("--")} <= known, (page, line)


def test_method_strings_can_be_read():
    found = [spec for text in LIVE.values() for spec in re.findall(rf"`((?:{KINDS})\([^`]*\)[^`]*)`", text)]
    assert len(found) > 30
    for spec in found:
        if spec != "snapkv + h2o":
            keyhole.Recipe.parse(spec)


def test_links_lead_somewhere():
    made = {
        "methods/index.md",
        "methods/taxonomy.md",
        "reference/cli.md",
        "development/add-a-method.md",
        *(f"methods/{name}.md" for name in keyhole.METHODS),
    }
    for page, text in LIVE.items():
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            path = (DOCS / page).parent / target
            assert path.exists() or str(path.resolve().relative_to(DOCS)) in made, (page, target)
