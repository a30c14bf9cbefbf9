"""Where documents are stored, what they are called, and where they come from."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from keyhole.core.names import fits

STDIN = "-"
_NAMED = "KEYHOLE_STORE"
_LONGEST = 80


def default_store() -> Path:
    """The directory of the store: what the environment variable KEYHOLE_STORE says, else the user's own."""
    named = os.environ.get(_NAMED)
    found = Path(named) if named else platformdirs.user_data_path("keyhole", appauthor=False) / "documents"
    return found.expanduser()


def name_of(name: str | None, files: list[str] | None) -> str:
    """The name of a document: as given, else that of its first file without the suffix.

    Raises:
        ValueError: there is none, or it cannot be used as one.
    """
    if name is None:
        if not files or files[0] == STDIN:
            raise ValueError("a document that is no file needs a name; give `name` (--name)")
        stem = Path(files[0]).expanduser().stem
        name = "".join(char if fits(char) else "_" for char in stem)[:_LONGEST].strip()
    if not name.strip() or len(name) > _LONGEST or not all(map(fits, name)) or name != name.strip():
        raise ValueError(
            f"the name {name[:_LONGEST]!r} cannot be used; give 1 to {_LONGEST} characters, no control "
            "characters, no space at the ends"
        )
    if name == STDIN:
        raise ValueError(f"the name {name!r} stands for stdin; give another one")
    return name


def source_of(files: list[str]) -> str:
    """Where the text of files comes from, the same from every working directory."""
    return ", ".join("stdin" if file == STDIN else str(_absolute(file)) for file in files)


def _absolute(file: str) -> Path:
    return Path(file).expanduser().absolute()
