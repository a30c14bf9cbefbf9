"""Documents and beginnings for those who read them."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

import numpy as np

from keyhole.core.errors import UnknownDocumentError
from keyhole.documents.store.backing import Backing, touch
from keyhole.documents.store.entry import Entry
from keyhole.documents.store.finding import find
from keyhole.documents.store.keys import token_array
from keyhole.documents.store.leases import Lease, Match, OpenDocument
from keyhole.documents.store.records import described
from keyhole.documents.store.rows import DocumentRow


def open_document(backing: Backing, name: str, *, counted: bool) -> OpenDocument:
    """See `Store.open`."""
    with backing.change() as change:
        row = finished(name, change.documents)
        chain = backing.chain(row, change.tree)
        lease = Lease(backing.place.leases, row.tail)
        indexes = change.tree.behind(row.tail)
        if counted:
            touch(change, [*chain, *indexes], row)
        documents = described(change.documents, change.tree)
        document = next(each for each in documents if (each.name, each.goal) == (name, row.goal))
    entries = [backing.entry(each) for each in chain]
    blocks, state = ([], entries[0]) if row.whole else (entries, None)
    made = {}
    for child in indexes:
        method, version = child.tag.split("\n", 1)
        made[method, version] = backing.entry(child)
    return OpenDocument(lease, document, tuple(blocks), state, made)


def match(backing: Backing, tokens: Sequence[int] | np.ndarray, fingerprint: str) -> Match:
    """See `Store.match`."""
    ids = token_array(tokens)
    with backing.change() as change:
        found = find(change.held, ids, fingerprint)
        if found.tail is None:
            return Match(None, (), None, 0)
        lease = Lease(backing.place.leases, found.tail.key)
        touch(change, found.blocks)
    blocks = [backing.entry(row) for row in found.blocks]
    partial: Entry | None = None
    if found.partial is not None:
        partial = backing.entry(found.partial)
        if found.agreeing == found.partial.count:
            blocks, partial = [*blocks, partial], None
    return Match(lease, tuple(blocks), partial, found.position + found.agreeing)


def finished(name: str, documents: list[DocumentRow]) -> DocumentRow:
    """The finished document of a name.

    Raises:
        UnknownDocumentError: see `Store.open`.
    """
    named = [row for row in documents if row.name == name]
    for row in named:
        if row.tail == row.goal:
            return row
    if named:
        stored = f"{named[0].position:,} of {len(named[0].ids):,} tokens"
        raise UnknownDocumentError(
            f"{name!r} is not read to its end ({stored} stored); add it again to go on"
        )
    raise unknown(name, [row.name for row in documents])


def unknown(name: str, names: list[str], also: str = "") -> UnknownDocumentError:
    close = get_close_matches(name, names) or sorted(set(names))[:5]
    known = f"; did you mean {' or '.join(map(repr, close))}?" if close else "; the store is empty"
    return UnknownDocumentError(f"there is no document {name!r}{also}{known}")
