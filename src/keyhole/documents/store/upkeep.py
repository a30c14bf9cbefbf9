"""What `gc` and `verify` say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Collected:
    """What `gc` removed: files, bytes, and the names of expired documents."""

    files: int
    nbytes: int
    expired: tuple[str, ...]


@dataclass(frozen=True)
class Damage:
    """Something that is not what was written.

    Attributes:
        path: the file.
        what: in words.
        documents: names of those that cannot be read because of it.
    """

    path: Path
    what: str
    documents: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What `verify` found; `garbage` counts bytes that `gc` removes, which is no damage."""

    damaged: tuple[Damage, ...]
    entries: int
    nbytes: int
    garbage: int

    @property
    def clean(self) -> bool:
        return not self.damaged
