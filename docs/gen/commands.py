"""The reference of the command line, from the commands themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer

from keyhole.cli import app

_HEAD = """\
# Command line

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 failure, 2 bad usage or input, 130 interrupted.
`keyhole --traceback COMMAND ...` shows where an error arose. Arguments are checked before a model is loaded.
"""


def page() -> str:
    """The page, with a section for each command."""
    return "\n".join([_HEAD, *_sections("keyhole", typer.main.get_command(app))])


def _sections(name: str, command: Any) -> Iterator[str]:
    for word, inner in getattr(command, "commands", {}).items():
        full = f"{name} {word}"
        if getattr(inner, "commands", None):
            yield _section(full, inner) if inner.params else f"## {full}\n\n{inner.help}\n"
            yield from _sections(full, inner)
        else:
            yield _section(full, inner)


def _section(name: str, command: Any) -> str:
    level = "#" * min(len(name.split()), 3)
    text = " ".join((command.help or "").split())
    lines = [f"{level} {name}", "", text, ""]
    if command.params:
        lines += ["| option | default | |", "|---|---|---|", *map(_option, command.params), ""]
    return "\n".join(lines)


def _option(parameter: Any) -> str:
    names = ", ".join(f"`{name}`" for name in parameter.opts)
    shown = parameter.show_default if isinstance(parameter.show_default, str) else parameter.default
    default = "required" if parameter.required else _default(shown)
    text = re.sub(r"[|<>]", lambda found: f"&#{ord(found[0])};", getattr(parameter, "help", None) or "")
    return f"| {names} | {default} | {text} |"


def _default(value: Any) -> str:
    return "" if value is None or value == "" or value is False else str(value)
