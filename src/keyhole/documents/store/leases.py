"""What a reader holds while it reads: entries that neither eviction, gc nor `remove` takes from under it."""

from __future__ import annotations

import os
import uuid
import weakref
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from keyhole.core.closing import Closing
from keyhole.core.files import hold, release
from keyhole.documents.store.entry import Entry
from keyhole.documents.store.records import Document

if TYPE_CHECKING:
    pass


class Lease:
    """A locked file named after an entry. Made and looked at while the store is `changing`."""

    def __init__(self, directory: Path, key: str) -> None:
        path = directory / f"{key}-{uuid.uuid4().hex[:12]}"
        handle = hold(path)
        assert handle is not None  # nobody else knows the name
        self.give_back = weakref.finalize(self, _give_back, path, handle, os.getpid())


def leased(directory: Path) -> Counter[str]:
    """Keys that are leased, and how often; files of processes that ended are removed."""
    found: Counter[str] = Counter()
    for path in directory.iterdir():
        with suppress(FileNotFoundError):  # given back meanwhile
            handle = hold(path)
            if handle is None:
                found[path.name.split("-")[0]] += 1
            else:
                path.unlink(missing_ok=True)
                release(handle)
    return found


def _give_back(path: Path, handle: int, process: int) -> None:
    if os.getpid() == process:  # a forked process leaves it to the one that took it
        path.unlink(missing_ok=True)
        release(handle)


class Leased(Closing):
    """A lease until `close`, the end of its `with` block, of the object, or of the process."""

    def __init__(self, lease: Lease | None) -> None:
        self._lease = lease

    def close(self) -> None:
        """Give the lease back; tensors already mapped stay readable."""
        if self._lease is not None:
            self._lease.give_back()
            self._lease = None


class Match(Leased):
    """What is stored of the beginning of some tokens.

    Attributes:
        blocks: stored blocks from the first token on; the last may have fewer than `BLOCK` tokens.
        partial: a stored block of which only the first `length - (tokens of blocks)` tokens agree, or None;
            its rows up to there can be copied.
        length: tokens that agree, `partial` included; the token at this place is the first to differ.
    """

    def __init__(
        self, lease: Lease | None, blocks: tuple[Entry, ...], partial: Entry | None, length: int
    ) -> None:
        super().__init__(lease)
        self.blocks, self.partial, self.length = blocks, partial, length


class OpenDocument(Leased):
    """A document in use. It may be removed or replaced meanwhile; its entries stay until it is closed.

    Attributes:
        blocks: in order; empty where the document is a state.
        state: the state, or None.
        indexes: those of its methods, by method and version.
    """

    def __init__(
        self,
        lease: Lease,
        document: Document,
        blocks: tuple[Entry, ...],
        state: Entry | None,
        indexes: dict[tuple[str, str], Entry],
    ) -> None:
        super().__init__(lease)
        self.document, self.blocks, self.state, self.indexes = document, blocks, state, indexes

    def index(self, method: str, version: str) -> Entry | None:
        """The index of a method as it was at opening, or put by `Store.put_index` since; None: build it."""
        return self.indexes.get((method, version))
