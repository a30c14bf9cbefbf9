"""Where documents are stored, and what they are called."""

from __future__ import annotations

import os
import re
from pathlib import Path

import platformdirs

_NAMED = "KEYHOLE_STORE"
_LONGEST = 80
_UNFIT = re.compile(r"[\x00-\x1f\x7f]")


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
        if not files or files[0] == "-":
            raise ValueError("a document that is no file needs a name; give `name` (--name)")
        name = Path(files[0]).expanduser().stem
    if not name.strip() or len(name) > _LONGEST or _UNFIT.search(name) or name != name.strip():
        raise ValueError(
            f"the name {name[:_LONGEST]!r} cannot be used; give 1 to {_LONGEST} printable characters, no "
            "space at the ends"
        )
    return name
