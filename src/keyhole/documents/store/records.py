"""What the store says about its documents."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from keyhole.documents.store.rows import DocumentRow, EntryRow
from keyhole.documents.store.tree import Tree


@dataclass(frozen=True, eq=False)
class Document:
    """A document as it is listed.

    Attributes:
        name: as given by the caller.
        goal: key of the entry at which it is finished; `tail` is that at which it now ends ("": nowhere).
        tokens: all of its token ids, uint32 `[n]`, also those not stored yet.
        stored: how many of them are stored.
        whole: it is one state, not blocks.
        method, model, source: the caller's words.
        fingerprint: as given.
        created, used: seconds since the epoch.
        hits: how often it was opened.
        seconds: what its entries cost to make.
        nbytes: bytes of its entries, index included; `shared` of them also belong to other documents.
        ttl: seconds after the last use at which it expires, or None.
    """

    name: str
    goal: str
    tail: str
    tokens: np.ndarray = field(repr=False)
    stored: int
    whole: bool
    fingerprint: str
    method: str
    model: str
    source: str
    created: float
    used: float
    hits: int
    seconds: float
    nbytes: int
    shared: int
    pinned: bool
    ttl: float | None

    @property
    def finished(self) -> bool:
        return self.tail == self.goal


def described(documents: list[DocumentRow], tree: Tree) -> list[Document]:
    """Documents as they are listed, by name."""
    needed = {(row.name, row.goal): tree.needed([row.tail]) for row in documents}
    uses = Counter(key for keys in needed.values() for key in keys)
    listed = sorted(documents, key=lambda row: (row.name, row.tail != row.goal, -row.used))
    return [
        _described(row, [tree.entries[key] for key in needed[row.name, row.goal]], uses) for row in listed
    ]


def _described(row: DocumentRow, entries: list[EntryRow], uses: Counter[str]) -> Document:
    return Document(
        name=row.name,
        goal=row.goal,
        tail=row.tail,
        tokens=row.ids,
        stored=row.position,
        whole=bool(row.whole),
        fingerprint=row.fingerprint,
        method=row.method,
        model=row.model,
        source=row.source,
        created=row.created,
        used=row.used,
        hits=row.hits,
        seconds=sum(entry.seconds for entry in entries),
        nbytes=sum(entry.nbytes for entry in entries),
        shared=sum(entry.nbytes for entry in entries if uses[entry.key] > 1),
        pinned=bool(row.pinned),
        ttl=None if row.ttl < 0 else row.ttl,
    )
