"""The store: the one class through which everything else of this package is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from keyhole.documents.store.entry import Entry
from keyhole.documents.store.leases import Match, OpenDocument
from keyhole.documents.store.records import Document, Stats
from keyhole.documents.store.upkeep import Collected, Report
from keyhole.documents.store.writer import Writer


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
        raise NotImplementedError

    def documents(self) -> list[Document]:
        """All documents by name, unfinished ones too. A name may have a finished and an unfinished one."""
        raise NotImplementedError

    def document(self, name: str) -> Document:
        """The finished document of a name, else the unfinished one used last.

        Raises:
            UnknownDocumentError: there is none; the message names similar ones.
        """
        raise NotImplementedError

    def open(self, name: str) -> OpenDocument:
        """A finished document for reading; counts as a use.

        Raises:
            UnknownDocumentError: there is none of this name, or only an unfinished one (`begin` it).
        """
        raise NotImplementedError

    def match(self, tokens: Sequence[int] | np.ndarray, fingerprint: str) -> Match:
        """The longest beginning of `tokens` that is stored; counts as a use."""
        raise NotImplementedError

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
        pinned: bool = False,
        ttl: float | None = None,
        waiting: Callable[[int, int], None] | None = None,
    ) -> Writer:
        """Add a document, or go on where its adding was interrupted.

        While another process adds under the same name, or the same tokens, it is waited for: `waiting` is
        called about four times a second with the tokens that one has stored, and all of them; it may raise.

        Args:
            whole: the document will be one state (`Writer.put_state`), not blocks.
            ttl: seconds after the last use.
        """
        raise NotImplementedError

    def put_index(
        self,
        opened: OpenDocument,
        method: str,
        version: str,
        tensors: dict[str, Tensor],
        *,
        seconds: float,
        facts: dict[str, Any] | None = None,
    ) -> Entry:
        """Store the index of a method for an open document, in place of that of another version."""
        raise NotImplementedError

    def change(self, name: str, *, pinned: bool | None = None, ttl: float | None = -1) -> Document:
        """Pin, unpin, or set the ttl in seconds (None: for ever; negative: as it was)."""
        raise NotImplementedError

    def remove(self, name: str) -> int:
        """Remove all documents of a name; returns the bytes freed. Entries in use go later (gc)."""
        raise NotImplementedError

    def admit(self, nbytes: int) -> None:
        """Refuse a document of `nbytes` bytes that could never be stored, before it is read.

        Raises:
            QuotaError: it is larger than the quota, less what is pinned and in use.
        """
        raise NotImplementedError

    def gc(self, usable: Callable[[Document], bool] | None = None) -> Collected:
        """Remove what nothing refers to, temporary files, expired documents and those not `usable`."""
        raise NotImplementedError

    def verify(self, *, repair: bool = False, progress: Callable[[int, int], None] | None = None) -> Report:
        """Read every byte and compare it with what was written.

        Args:
            repair: remove what is damaged; its documents become unfinished, and go on from there when they
                are begun again.
            progress: is called with the bytes read, and all of them.
        """
        raise NotImplementedError

    def stats(self) -> Stats:
        """Sizes and counts."""
        raise NotImplementedError
