"""Rows of the store's metadata."""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields
from typing import Any, ClassVar

import numpy as np

_SQL = {"str": "TEXT NOT NULL", "int": "INTEGER NOT NULL", "float": "REAL NOT NULL", "bytes": "BLOB NOT NULL"}
_PYTHON: dict[str, Any] = {"int": int, "float": float}


class Row:
    """A row: its fields are the columns of `table`, of which `keys` are the primary key."""

    table: ClassVar[str]
    keys: ClassVar[tuple[str, ...]]

    @classmethod
    def names(cls) -> tuple[str, ...]:
        return tuple(field.name for field in fields(cls))  # type: ignore[arg-type]

    @classmethod
    def columns(cls) -> list[tuple[str, str]]:
        """Names and SQL types."""
        return [(field.name, _SQL[str(field.type)]) for field in fields(cls)]  # type: ignore[arg-type]

    def values(self) -> tuple[Any, ...]:
        """As SQLite gives them back."""
        held = astuple(self)  # type: ignore[call-overload]
        types = [str(field.type) for field in fields(self)]  # type: ignore[arg-type]
        return tuple(_PYTHON.get(kind, _same)(value) for kind, value in zip(types, held, strict=True))


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class EntryRow(Row):
    """An entry.

    Attributes:
        parent: key of the entry before it; of the first block `root_key`; "" of a state.
        tokens: of a block its own, little-endian uint32; `count` of them; of a state `count` are read.
        tag: method and version of an index, else "".
        head, digest: length and digest of the file's header and checksums.
        seconds: what it cost to make, given its parent.
        frequency, clock, used: for the eviction; `clock` is that of the last use.
    """

    table = "entries"
    keys = ("key",)

    key: str
    kind: str
    parent: str
    tokens: bytes
    count: int
    tag: str
    nbytes: int
    head: int
    digest: bytes
    seconds: float
    frequency: int
    clock: float
    used: float

    @property
    def priority(self) -> float:
        """GDSF's: what it is worth to keep."""
        return self.clock + self.frequency * self.seconds / self.nbytes


@dataclass(frozen=True)
class DocumentRow(Row):
    """A document, see `Document`; `position` of its tokens are stored, ttl is -1 for none."""

    table = "documents"
    keys = ("name", "goal")

    name: str
    goal: str
    tail: str
    tokens: bytes
    position: int
    whole: int
    fingerprint: str
    method: str
    model: str
    source: str
    created: float
    used: float
    hits: int
    pinned: int
    ttl: float

    @property
    def ids(self) -> np.ndarray:
        return np.frombuffer(self.tokens, "<u4")

    def expired(self, now: float) -> bool:
        return self.ttl >= 0 and not self.pinned and now > self.used + self.ttl


@dataclass(frozen=True)
class ClockRow(Row):
    """The one row that holds the clock of the eviction."""

    table = "clocks"
    keys = ("id",)

    id: int
    clock: float
