"""Adding a document."""

from __future__ import annotations

from dataclasses import replace
from time import time
from typing import TYPE_CHECKING, Any

import numpy as np

from keyhole.core.errors import StoreError
from keyhole.documents.store.entry import Entry
from keyhole.documents.store.indexes import add_index
from keyhole.documents.store.keys import BLOCK, block_key, root_key, state_key
from keyhole.documents.store.leases import Lease, Leased
from keyhole.documents.store.making import made
from keyhole.documents.store.rows import DocumentRow, EntryRow
from keyhole.documents.store.writing import WriterLock

if TYPE_CHECKING:
    from torch import Tensor

    from keyhole.documents.store.backing import Backing
    from keyhole.documents.store.entry_file import EntryFile


class Writer(Leased):
    """Adds one document; made by `Store.begin`. Closing without `finish` leaves what was added, to resume.

    Attributes:
        blocks: what is stored so far, in order: found at the beginning, then appended.
        partial: a stored block whose first `partial_length` tokens are the next ones, or None; its rows up
            to there may be copied into the next block instead of computed.
        state: the newest state, of a document that is one whole state; else None.
        position: tokens that are stored.
        total: tokens of the document.
    """

    def __init__(
        self, backing: Backing, row: DocumentRow, locks: list[WriterLock], lease: Lease | None
    ) -> None:
        super().__init__(lease)
        self._backing, self._row, self._locks = backing, row, locks
        self.blocks: tuple[Entry, ...] = ()
        self.partial: Entry | None = None
        self.partial_length = 0
        self.state: Entry | None = None
        self.total = len(row.ids)

    @property
    def position(self) -> int:
        return self._row.position

    @property
    def next(self) -> tuple[int, int]:
        """First and last (exclusive) token of the next block; both `total` where all is stored."""
        return self.position, min(self.position + BLOCK, self.total)

    def append(
        self, tensors: dict[str, Tensor], *, seconds: float, facts: dict[str, Any] | None = None
    ) -> Entry:
        """Store the block of the tokens `next`, which cost `seconds` to make. On the disk when it returns.

        A block which somebody else stored meanwhile is not written again.

        Raises:
            QuotaError: there is no room, and nothing that may be evicted.
            ValueError: all blocks are stored; NaN or infinity among the tensors.
            OSError: it cannot be written (disk full); what was stored stays.
        """
        start, stop = self.next
        if self._row.whole or start == stop:
            what = "is one whole state: use put_state" if self._row.whole else f"has no token after {stop}"
            raise StoreError(f"no block can be appended: {self._row.name!r} {what}")
        ids = self._row.ids[start:stop]
        parent = self._row.tail or root_key(self._row.fingerprint)
        file, row = made("block", block_key(parent, ids), parent, ids, tensors, seconds, facts)
        entry = self._add(file, row, stop)
        self.blocks, self.partial, self.partial_length = (*self.blocks, entry), None, 0
        return entry

    def put_state(
        self,
        position: int,
        tensors: dict[str, Tensor],
        *,
        seconds: float,
        facts: dict[str, Any] | None = None,
    ) -> Entry:
        """Store the state after `position` tokens, in place of the earlier one; `seconds` since that.

        Raises:
            ValueError: a position that is not after the earlier one; NaN or infinity; not a whole state.
            QuotaError, OSError: as `append`; the earlier state stays.
        """
        if not self._row.whole or not self.position < position <= self.total:
            raise StoreError(
                f"no state after {position} tokens can be stored for {self._row.name!r}: it must be begun "
                f"with whole=True, and the position from {self.position + 1} to {self.total}"
            )
        key = state_key(self._row.ids[:position], self._row.fingerprint)
        none = np.zeros(0, np.uint32)
        file, row = made("state", key, "", none, tensors, seconds, facts, count=position)
        self.state = self._add(file, row, position)
        return self.state

    def put_index(
        self,
        method: str,
        version: str,
        tensors: dict[str, Tensor],
        *,
        seconds: float | None,
        facts: dict[str, Any] | None = None,
    ) -> Entry:
        """Store the index of a method over the whole document, see `Store.put_index`; all must be stored."""
        self._check_whole("an index")
        return add_index(self._backing, self._row.tail, method, version, tensors, seconds, facts)

    def finish(self) -> None:
        """The document replaces others of its name; closes.

        Raises:
            ValueError: `position` is not `total`.
        """
        self._check_whole("a finished document")
        with self._backing.change() as change:
            others = [row for row in change.documents if row.name == self._row.name]
            change.forget([row for row in others if row.goal != self._row.goal])
        self.close()

    def close(self) -> None:
        super().close()
        for lock in self._locks:
            lock.release()

    def _check_whole(self, what: str) -> None:
        if self.position != self.total:
            raise StoreError(
                f"{what} needs all {self.total} tokens of {self._row.name!r}; {self.position} are stored"
            )

    def _add(self, file: EntryFile, row: EntryRow, position: int) -> Entry:
        with self._backing.change() as change:
            now = change.held.rows(DocumentRow, name=self._row.name, goal=self._row.goal)
            if row.kind == "state" and (earlier := change.held.entry(self._row.tail)):
                row = replace(row, seconds=earlier.seconds + row.seconds)
            after = replace((now or [self._row])[0], tail=row.key, position=position, used=time())
            found = change.add(file, row, lambda: change.held.put(after))
            before, self._row = self._row, after
            lease = Lease(change.place.leases, row.key)
            super().close()
            self._lease = lease
            if row.kind == "state" and before.tail:
                change.forget([])
        return self._backing.entry(found)
