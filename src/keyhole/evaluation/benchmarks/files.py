"""Files of benchmarks: JSON lines, JSON lists, and literals in a benchmark's own Python files."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

SUFFIXES = (".jsonl", ".json")
_PLAIN = frozenset({"data", "validation", "test", "synthetic"})  # folders and files that name no task


class Record(dict[str, Any]):
    """One record of a file; a field that is missing raises ValueError with the place."""

    def __init__(self, fields: dict[str, Any], place: str) -> None:
        super().__init__(fields)
        self.place = place

    def __missing__(self, name: str) -> Any:
        raise ValueError(f"{self.place}: there is no field {name!r}; there are: {', '.join(map(str, self))}")

    def text(self, name: str) -> str:
        """A field that must be text."""
        value = self[name]
        if not isinstance(value, str):
            raise ValueError(f"{self.place}: the field {name!r} is {value!r:.60}; it must be text")
        return value

    def texts(self, name: str) -> list[str]:
        """A field that must be a text or a list of them, at least one."""
        value = self[name]
        found = [value] if isinstance(value, str) else value
        if not isinstance(found, list) or not found or not all(isinstance(each, str) for each in found):
            raise ValueError(f"{self.place}: the field {name!r} is {value!r:.60}; it must be a list of texts")
        return found


def records(path: Path) -> Iterator[Record]:
    """The records of a file of JSON lines, or of one JSON list of objects."""
    text = read(path)
    lines = [(str(number), line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if path.suffix == ".json" and text.lstrip().startswith("["):
        for number, entry in enumerate(_parsed(text, path.name), 1):
            yield _record(entry, f"{path.name}, entry {number}")
        return
    for number, line in lines:
        yield _record(_parsed(line, f"{path.name}, line {number}"), f"{path.name}, line {number}")


def read(path: Path) -> str:
    """The text of a file, or a ValueError that names it."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is not UTF-8 text: {error.reason}") from error


def table(folder: Path, name: str) -> dict[str, Any] | None:
    """The JSON object of a file somewhere in a folder; None if there is no such file."""
    path = next(iter(sorted(folder.rglob(name))), None)
    return None if path is None else dict(_record(_parsed(read(path), path.name), path.name))


def literals(folder: Path, name: str) -> dict[str, Any] | None:
    """The literals that a Python file in a folder assigns, by name, without running it; None without it."""
    path = next(iter(sorted(folder.rglob(name))), None)
    if path is None:
        return None
    try:
        body = ast.parse(read(path)).body
    except (SyntaxError, ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is not a Python file: {error}") from error
    return {name: value for node in body for name, value in _assigned(node)}


def _assigned(node: ast.stmt) -> Iterator[tuple[str, Any]]:
    if not isinstance(node, ast.Assign):
        return
    try:
        value = ast.literal_eval(node.value)
    except (ValueError, TypeError, SyntaxError, RecursionError):
        return
    yield from ((target.id, value) for target in node.targets if isinstance(target, ast.Name))


def task_files(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """Files of tasks by label, which is the task's name behind the folders that tell several files apart.

    A task's file is `<task>.jsonl`, or the file in a folder `<task>`; `.json` likewise.
    """
    known, found = frozenset(names), {}
    for path in sorted(path for suffix in SUFFIXES for path in folder.rglob(f"*{suffix}")):
        parts = [*path.relative_to(folder).parts[:-1], path.stem]
        task = next((part for part in reversed(parts) if part in known), None)
        if task is not None:
            others = [part for part in parts if part != task and part not in _PLAIN]
            found["/".join([*others, task])] = path
    return found


def task_of(label: str) -> str:
    """The task's name in a label of `task_files`."""
    return label.rsplit("/", 1)[-1]


def _record(entry: object, place: str) -> Record:
    if not isinstance(entry, dict):
        raise ValueError(f"{place}: {entry!r:.60} is not a JSON object")
    return Record(entry, place)


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: not JSON: {error}") from error
