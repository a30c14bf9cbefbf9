"""What all parts of a store share: its directory, its metadata and its quota."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import numpy as np

from keyhole.documents.store.change import Change
from keyhole.documents.store.database import Database
from keyhole.documents.store.entry import Entry
from keyhole.documents.store.keys import root_key
from keyhole.documents.store.place import Place
from keyhole.documents.store.rows import DocumentRow, EntryRow
from keyhole.documents.store.tree import Tree


@dataclass(frozen=True)
class Backing:
    """Directory, metadata, and the bytes there may be."""

    place: Place
    database: Database
    quota: int

    @contextmanager
    def change(self) -> Iterator[Change]:
        """Be the only one who changes the store."""
        with self.place.changing(), self.database.connected() as held:
            yield Change(self.place, held, self.quota)

    def snapshot(self) -> tuple[Tree, list[DocumentRow]]:
        """Entries and documents as they are together at one time."""
        self.place.relieve()
        with self.database.connected() as held, held.reading():
            return Tree(held.rows(EntryRow)), held.rows(DocumentRow)

    def entry(self, row: EntryRow) -> Entry:
        """As readers see it."""
        return Entry(
            path=self.place.path(row.kind, row.key),
            kind=row.kind,
            key=row.key,
            parent=row.parent,
            tokens=np.frombuffer(row.tokens, "<u4"),
            nbytes=row.nbytes,
            head=row.head,
            digest=row.digest,
        )

    def chain(self, document: DocumentRow, tree: Tree) -> list[EntryRow]:
        """The entries of a document.

        Raises:
            DamagedStoreError: the metadata has lost some.
        """
        chain = tree.chain(document.tail)
        roots = {"", root_key(document.fingerprint)}
        if sum(row.count for row in chain) != document.position or (chain and chain[0].parent not in roots):
            raise self.database.damaged(f"entries of {document.name!r} are missing")
        return chain


def touch(change: Change, entries: Iterable[EntryRow], document: DocumentRow | None = None) -> None:
    """Count a use. On a full disk it is not counted, which is no reason not to read."""
    now, clock = time.time(), change.held.clock
    with suppress(OSError), change.held.database.connected() as held, held.changing():
        for row in entries:
            held.put(replace(row, frequency=row.frequency + 1, clock=clock, used=now))
        if document is not None:
            held.put(replace(document, hits=document.hits + 1, used=now))
