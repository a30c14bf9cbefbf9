"""The store: the one class through which everything else of this package is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keyhole.core.errors import DamagedStoreError
from keyhole.documents.store.backing import Backing
from keyhole.documents.store.beginning import Wanted, begin
from keyhole.documents.store.database import NAME, Database
from keyhole.documents.store.entry import Entry
from keyhole.documents.store.indexes import add_index
from keyhole.documents.store.keys import token_array
from keyhole.documents.store.leases import Match, OpenDocument
from keyhole.documents.store.named import change, remove
from keyhole.documents.store.place import Place, free_bytes
from keyhole.documents.store.reading import match, open_document, unknown
from keyhole.documents.store.records import Document, described
from keyhole.documents.store.sizes import Stats, admit, stats
from keyhole.documents.store.upkeep import Collected, Report, collect, verify
from keyhole.documents.store.writer import Writer

if TYPE_CHECKING:
    from torch import Tensor

_LEAST = 1 << 20  # bytes of a quota


class Store:
    """A directory of documents; any number of processes and threads may use it at once.

    Args:
        path: made where it is missing; mended to 0700.
        quota: bytes; without it a tenth of what is free on the disk, the store itself included.
        discard: forget all documents where the metadata is damaged or of another format, instead of refusing.

    Raises:
        DamagedStoreError: the metadata is damaged, or of another format.
        ValueError: `path` is a file, or belongs to somebody else; `quota` is below 1 MiB.
    """

    def __init__(self, path: str | Path, quota: int | None = None, *, discard: bool = False) -> None:
        if quota is not None and quota < _LEAST:
            raise ValueError(f"the quota must be at least {_LEAST:,} bytes (1 MiB), not {quota:,}")
        place = Place(Path(path).expanduser().absolute())
        database = Database(place.root / NAME)
        place.make()
        with place.changing():
            _prepare(database, discard)
        if quota is None:
            quota = max(_LEAST, (free_bytes(place.root) + place.used()) // 10)
        self._backing = Backing(place, database, quota)

    @property
    def path(self) -> Path:
        return self._backing.place.root

    @property
    def quota(self) -> int:
        return self._backing.quota

    def documents(self) -> list[Document]:
        """All documents by name, unfinished ones too. A name may have a finished and an unfinished one."""
        tree, documents = self._backing.snapshot()
        return described(documents, tree)

    def document(self, name: str) -> Document:
        """The finished document of a name, else the unfinished one used last.

        Raises:
            UnknownDocumentError: there is none; the message names similar ones.
        """
        held = self.documents()
        for found in held:
            if found.name == name:
                return found
        raise unknown(name, [each.name for each in held])

    def open(self, name: str, *, counted: bool = True) -> OpenDocument:
        """A finished document for reading; counts as a use, or does not where it is only looked at.

        Raises:
            UnknownDocumentError: there is none of this name, or only an unfinished one (`begin` it).
        """
        return open_document(self._backing, name, counted=counted)

    def match(self, tokens: Sequence[int] | np.ndarray, fingerprint: str) -> Match:
        """The longest beginning of `tokens` that is stored; counts as a use."""
        return match(self._backing, tokens, fingerprint)

    def begin(
        self,
        name: str,
        tokens: Sequence[int] | np.ndarray,
        fingerprint: str,
        *,
        whole: bool = False,
        method: str = "",
        model: str = "",
        source: str = "",
        pinned: bool | None = None,
        ttl: float | None = None,
        waiting: Callable[[int, int], object] | None = None,
    ) -> Writer:
        """Add a document, or go on where its adding was interrupted.

        While another process adds under the same name, or the same tokens, it is waited for: `waiting` is
        called about four times a second with the tokens that one has stored, and all of them; it may raise.

        Args:
            whole: the document will be one state (`Writer.put_state`), not blocks.
            pinned: never evicted, nor expired. None: as it was, which is False for a new document.
            ttl: seconds after the last use. None: as it was, which is for ever for a new document.
        """
        ids = token_array(tokens)
        wanted = Wanted(name, ids, fingerprint, whole, method, model, source, pinned, ttl)
        return begin(self._backing, wanted, waiting)

    def put_index(
        self,
        opened: OpenDocument,
        method: str,
        version: str,
        tensors: dict[str, Tensor],
        *,
        seconds: float | None,
        facts: dict[str, Any] | None = None,
    ) -> Entry:
        """Store the index of a method for an open document, in place of that of another version.

        Args:
            seconds: what it costs to make from the blocks. None: it cannot be made again; it is a note, which
                stays as long as the end of the document does.
        """
        entry = add_index(self._backing, opened.document.tail, method, version, tensors, seconds, facts)
        opened.indexes[method, version] = entry
        return entry

    def change(self, name: str, *, pinned: bool | None = None, ttl: float | None = -1) -> Document:
        """Pin, unpin, or set the ttl in seconds (None: for ever; -1: as it was)."""
        change(self._backing, name, pinned, ttl)
        return self.document(name)

    def remove(self, name: str) -> int:
        """Remove all documents of a name; returns the bytes freed. Entries in use go later (gc).

        Raises:
            UnknownDocumentError: there are none.
            ValueError: somebody is adding under this name.
        """
        return remove(self._backing, name)

    def admit(self, nbytes: int, tokens: Sequence[int] | np.ndarray = (), fingerprint: str = "") -> None:
        """Refuse a document of `nbytes` bytes that could never be stored, before it is read.

        With its tokens, what is stored already of their beginning is counted once.

        Raises:
            QuotaError: it is larger than the quota, less what is pinned and in use.
        """
        with self._backing.change() as change:
            admit(change, nbytes, tokens, fingerprint)

    def gc(self, usable: Callable[[Document], bool] | None = None) -> Collected:
        """Remove what nothing refers to, temporary files, expired documents and those not `usable`."""
        return collect(self._backing, usable)

    def verify(self, *, repair: bool = False, progress: Callable[[int, int], object] | None = None) -> Report:
        """Read every byte and compare it with what was written.

        Args:
            repair: remove what is damaged; its documents become unfinished, and go on from there when they
                are begun again.
            progress: is called with the bytes read, and all of them.

        Raises:
            DamagedStoreError: the metadata is damaged; `Store(path, discard=True)` begins anew.
        """
        return verify(self._backing, progress, repair=repair)

    def stats(self) -> Stats:
        """Sizes and counts."""
        with self._backing.change() as change:
            return stats(change)


def _prepare(database: Database, discard: bool) -> None:
    """Check the metadata, or make it."""
    if database.path.exists():
        try:
            database.check()
            return
        except DamagedStoreError:
            if not discard:
                raise
    database.create()
