"""Rows of single answers, appended to a file as they come, so that a run that was stopped goes on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from keyhole.core.files import naming, sync

_FORMAT = 1


class Key(NamedTuple):
    """What one row is of; `digest` is of prompt, question and reference, so that changed data are new."""

    method: str
    task: str
    sample: str
    turn: int
    digest: str


@dataclass(frozen=True)
class Row:
    """One answer.

    Attributes:
        score: 0 to 1; None where the sample was refused.
        refused: why it was not asked; empty if it was.
        cut_tokens: tokens cut out of the middle of the prompt.
        tokens_in_context: of decode steps, summed over layers and steps; `tokens_read` of these.
        bytes_read: of keys, values and index in decode steps.
    """

    method: str
    task: str
    sample: str
    turn: int
    digest: str
    groups: dict[str, str]
    score: float | None
    refused: str = ""
    answer: str = ""
    reference: Any = None
    prompt_tokens: int = 0
    cut_tokens: int = 0
    new_tokens: int = 0
    tokens_in_context: float = 0.0
    tokens_read: float = 0.0
    bytes_read: float = 0.0
    bytes_device: int = 0
    bytes_host: int = 0
    bytes_disk: int = 0
    prompt_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def key(self) -> Key:
        return Key(self.method, self.task, self.sample, self.turn, self.digest)


def digest(*parts: object) -> str:
    text = json.dumps(parts, ensure_ascii=True, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class RowFile:
    """Rows in memory, and in a file of JSON lines where one is given.

    The file's first line holds the settings of the run. A last line that was cut off by the end of a process
    is dropped, and its answer made again.

    Raises:
        ValueError: the file is of another run, with what differs, or damaged.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self._path = path
        self.rows: dict[Key, Row] = {}
        self._head = json.dumps({"keyhole_eval": _FORMAT, "settings": settings}, ensure_ascii=False)
        if path is not None and path.exists() and path.stat().st_size:
            self._load(path)
        elif path is not None:
            with naming(path):
                path.write_text(self._head + "\n", encoding="utf-8")

    def add(self, row: Row) -> None:
        self.rows[row.key] = row
        if self._path is not None:
            with naming(self._path), self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Wait until the rows are on the disk."""
        if self._path is not None:
            sync(self._path)

    def _load(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        lines = whole.splitlines()
        if not lines or lines[0] != self._head:
            raise ValueError(_differing(path, lines[0] if lines else text, self._head))
        for number, line in enumerate(lines[1:], 2):
            try:
                row = Row(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"{str(path)!r} is damaged in line {number}; remove the file to start anew"
                ) from error
            self.rows[row.key] = row
        if whole != text:
            with naming(path):
                path.write_bytes(whole.encode())


def _differing(path: Path, theirs: str, ours: str) -> str:
    way = "give another --json file, or remove this one"
    try:
        before, now = json.loads(theirs)["settings"], json.loads(ours)["settings"]
    except (ValueError, KeyError, TypeError):
        return f"{str(path)!r} is not a file of answers of `keyhole eval`; {way}"
    names = sorted({*before, *now})
    changes = (
        f"{name} was {before.get(name)!r}, is {now.get(name)!r}"
        for name in names
        if before.get(name) != now.get(name)
    )
    return f"{str(path)!r} is of a run with other settings ({'; '.join(changes) or 'another format'}); {way}"
