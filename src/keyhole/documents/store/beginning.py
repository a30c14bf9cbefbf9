"""Beginning to add a document, or going on with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import time

import numpy as np

from keyhole.core.names import check_name
from keyhole.documents.store.backing import Backing, touch
from keyhole.documents.store.change import Change
from keyhole.documents.store.finding import Found, find
from keyhole.documents.store.keys import block_keys, state_key
from keyhole.documents.store.leases import Lease
from keyhole.documents.store.rows import DocumentRow
from keyhole.documents.store.writer import Writer
from keyhole.documents.store.writing import WriterLock, content_lock, name_lock

Waiting = Callable[[int, int], object]


@dataclass(frozen=True)
class Wanted:
    """A document to be added; see `Store.begin`."""

    name: str
    ids: np.ndarray
    fingerprint: str
    whole: bool
    method: str
    model: str
    source: str
    pinned: bool | None
    ttl: float | None

    def __post_init__(self) -> None:
        """Raises ValueError for a name or ttl that cannot be."""
        check_name(self.name)
        check_ttl(self.ttl)

    @property
    def goal(self) -> str:
        if self.whole:
            return state_key(self.ids, self.fingerprint)
        return block_keys(self.ids, self.fingerprint)[-1]

    def row(self, tail: str, position: int, earlier: DocumentRow | None) -> DocumentRow:
        """Its record, which takes the counts of an earlier one over."""
        return DocumentRow(
            name=self.name,
            goal=self.goal,
            tail=tail,
            tokens=self.ids.astype("<u4").tobytes(),
            position=position,
            whole=self.whole,
            fingerprint=self.fingerprint,
            method=self.method,
            model=self.model,
            source=self.source,
            created=earlier.created if earlier else time(),
            used=time(),
            hits=earlier.hits if earlier else 0,
            pinned=bool(earlier and earlier.pinned) if self.pinned is None else self.pinned,
            ttl=(earlier.ttl if earlier else -1.0) if self.ttl is None else self.ttl,
        )


def check_ttl(ttl: float | None) -> None:
    if ttl is not None and not (math.isfinite(ttl) and ttl >= 0):
        raise ValueError(f"ttl must be seconds from 0, or None for ever, not {ttl}")


def begin(backing: Backing, wanted: Wanted, waiting: Waiting | None) -> Writer:
    """See `Store.begin`."""
    locks: list[WriterLock] = []
    try:
        for what in (name_lock(wanted.name), content_lock(wanted.goal)):
            lock = WriterLock(backing.place.writers, what)
            lock.acquire(partial(_wait, backing, wanted, waiting))
            locks.append(lock)
        return _begin(backing, wanted, locks)
    except BaseException:
        for lock in locks:
            lock.release()
        raise


def _begin(backing: Backing, wanted: Wanted, locks: list[WriterLock]) -> Writer:
    with backing.change() as change:
        found = _stored(change, wanted)
        lease = Lease(backing.place.leases, found.tail.key) if found.tail else None
        try:
            row = _record(change, wanted, found)
        except BaseException:
            if lease is not None:
                lease.give_back()
            raise
    entries = tuple(map(backing.entry, found.blocks))
    writer = Writer(backing, row, locks, lease)
    if wanted.whole:
        writer.state = entries[-1] if entries else None
        return writer
    writer.blocks = entries
    if found.partial is not None:
        writer.partial, writer.partial_length = backing.entry(found.partial), found.agreeing
    return writer


def _record(change: Change, wanted: Wanted, found: Found) -> DocumentRow:
    """Count the use of what is stored, and record the document."""
    touch(change, found.blocks)
    earlier = next(iter(change.held.rows(DocumentRow, name=wanted.name, goal=wanted.goal)), None)
    row = wanted.row(found.blocks[-1].key if found.blocks else "", found.position, earlier)
    change.make_room(2 * len(row.tokens))
    with change.held.changing():
        change.held.put(row)
    return row


def _stored(change: Change, wanted: Wanted) -> Found:
    """What is stored of it: blocks, or the newest state."""
    if not wanted.whole:
        return find(change.held, wanted.ids, wanted.fingerprint)
    earlier = change.held.rows(DocumentRow, name=wanted.name, goal=wanted.goal)
    for key in (wanted.goal, *(row.tail for row in earlier)):
        row = change.held.entry(key)
        if row is not None:
            return Found((row,), None, 0)
    return Found((), None, 0)


def _wait(backing: Backing, wanted: Wanted, waiting: Waiting | None) -> None:
    """Say how far the other one is."""
    if waiting is not None:
        with backing.database.connected() as held:
            same = held.rows(DocumentRow, goal=wanted.goal) or held.rows(DocumentRow, name=wanted.name)
            done = max((row.position for row in same), default=0)
            waiting(done, max((len(row.ids) for row in same), default=len(wanted.ids)))
