"""One change to a store: whoever makes it is the only one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from keyhole.core.errors import QuotaError
from keyhole.documents.store.database import Connection
from keyhole.documents.store.leases import leased
from keyhole.documents.store.place import Place
from keyhole.documents.store.rows import ClockRow, DocumentRow, EntryRow
from keyhole.documents.store.tree import Tree, shortened
from keyhole.documents.store.writing import is_written

if TYPE_CHECKING:
    from keyhole.documents.store.entry_file import EntryFile

_MARGIN = 1 << 16  # bytes for directories, and rows beside what the metadata takes already


@dataclass
class Swept:
    """What went because nobody needs it."""

    files: int = 0
    nbytes: int = 0
    expired: tuple[str, ...] = ()


class Change:
    """What may be done to a store while it is `Place.changing`."""

    def __init__(self, place: Place, held: Connection, quota: int) -> None:
        self.place, self.held, self.quota = place, held, quota

    @cached_property
    def tree(self) -> Tree:
        return Tree(self.held.rows(EntryRow))

    @cached_property
    def documents(self) -> list[DocumentRow]:
        return self.held.rows(DocumentRow)

    def kept(self) -> set[str]:
        """Keys of what cannot be evicted: pinned, or in use."""
        pinned = [row.tail for row in self.documents if row.pinned]
        return self.tree.needed([*pinned, *leased(self.place.leases)])

    def overhead(self) -> int:
        """Bytes to be left for the metadata, which may double while it is written."""
        return self.place.metadata() + _MARGIN

    def make_room(self, nbytes: int) -> None:
        """Evict until so many bytes may be written.

        Raises:
            QuotaError: there are not so many that may be evicted; none are.
        """
        need = nbytes + self.overhead() - self.quota
        if self.place.used() + need <= 0:
            return
        self.sweep()
        short = self.place.used() + need
        kept = self.kept()
        evictable = sum(row.nbytes for row in self.tree.entries.values() if row.key not in kept)
        if short > evictable:
            raise QuotaError(self.no_room(nbytes, kept, short - evictable))
        victims, clock = [], self.held.clock
        for row in self.tree.eviction(kept):
            if short <= 0 and row.kind != "note":
                break
            victims.append(row)
            short -= row.nbytes
            clock = clock if row.kind == "note" else max(clock, row.priority)
        if victims:
            self.drop(victims, clock=clock)

    def no_room(self, nbytes: int, kept: set[str], missing: int) -> str:
        """What to say when so many bytes cannot be stored."""
        held = sum(self.tree.entries[key].nbytes for key in kept)
        return (
            f"{nbytes:,} bytes do not fit into {self.place.root}: the quota is {self.quota:,} bytes, of "
            f"which {held:,} are pinned or in use; {missing:,} are missing. Give a larger quota, unpin or "
            "remove documents"
        )

    def add(self, file: EntryFile, row: EntryRow, with_it: Callable[[], object]) -> EntryRow:
        """Store an entry, and do `with_it` in the same transaction; the one of its key if there is one.

        Raises:
            QuotaError, OSError: there is no room; nothing was changed.
        """
        found = self.held.entry(row.key)
        if found is not None:
            with self.held.changing():
                with_it()
            return found
        self.make_room(file.nbytes)
        self.place.check_free(file.nbytes)
        path = self.place.path(row.kind, row.key)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        row = replace(row, clock=self.held.clock)
        recorded = False
        try:
            file.write(path)
            with self.held.changing():
                self.held.put(row)
                with_it()
            recorded = True
        finally:
            if not recorded:
                _unlink(path)
        self._changed()
        return row

    def drop(
        self,
        gone: Iterable[EntryRow],
        documents: Iterable[DocumentRow] = (),
        *,
        clock: float | None = None,
    ) -> None:
        """Remove entries with all behind them, and documents; others get shorter, or go when empty."""
        gone, documents = list(gone), list(documents)
        keys = {row.key for row in gone}
        removed = {(row.name, row.goal) for row in documents}
        with self.held.changing():
            for entry in gone:
                self.held.drop(entry)
            for document in documents:
                self.held.drop(document)
            for document in self.documents:
                if document.tail in keys and (document.name, document.goal) not in removed:
                    self._shorten(document, keys)
            if clock is not None:
                self.held.put(ClockRow(0, clock))
        for entry in gone:
            _unlink(self.place.path(entry.kind, entry.key))
        self._changed()

    def _shorten(self, document: DocumentRow, gone: set[str]) -> None:
        tail, position = shortened(document, self.tree, gone)
        if position or is_written(self.place.writers, document.name):
            self.held.put(replace(document, tail=tail, position=position))
        else:
            self.held.drop(document)

    def forget(self, documents: list[DocumentRow]) -> list[EntryRow]:
        """Remove documents and all entries that no other document needs, except those in use."""
        removed = {(row.name, row.goal) for row in documents}
        others = [row.tail for row in self.documents if (row.name, row.goal) not in removed]
        needed = self.tree.needed([*others, *leased(self.place.leases)])
        gone = [row for row in self.tree.entries.values() if row.key not in needed]
        if gone or documents:
            self.drop(gone, documents)
        return gone

    def sweep(self) -> Swept:
        """Remove expired documents, those without anything stored, and files that nothing refers to."""
        now = time.time()
        idle = [row for row in self.documents if not is_written(self.place.writers, row.name)]
        expired = [row for row in idle if row.expired(now)]
        gone = self.forget([row for row in idle if row.expired(now) or not row.tail])
        garbage = self.garbage()
        for path, _ in garbage:
            _unlink(path)
        return Swept(
            files=len(gone) + len(garbage),
            nbytes=sum(row.nbytes for row in gone) + sum(size for _, size in garbage),
            expired=tuple(sorted(row.name for row in expired)),
        )

    def garbage(self) -> list[tuple[Path, int]]:
        """Files without a record, with their bytes."""
        known = {self.place.path(row.kind, row.key) for row in self.tree.entries.values()}
        return [(path, size) for path, size in self.place.files() if path not in known]

    def _changed(self) -> None:
        for name in ("tree", "documents"):
            self.__dict__.pop(name, None)


def _unlink(path: Path) -> None:
    """Remove a file, and its directory where it is the last one there."""
    with suppress(OSError):  # kept open, on a system where that keeps it: garbage, which goes later
        path.unlink(missing_ok=True)
        path.parent.rmdir()
