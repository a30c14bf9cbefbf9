"""How much there is in a store, and whether something could ever fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from keyhole.core.errors import QuotaError
from keyhole.documents.store.change import Change
from keyhole.documents.store.finding import find
from keyhole.documents.store.keys import token_array
from keyhole.documents.store.leases import leased


@dataclass(frozen=True)
class Stats:
    """Of a store.

    Attributes:
        used: bytes of all files and directories; `quota` is the most there may be.
        entries: bytes of what documents refer to.
        unshared: bytes that would be without sharing.
        garbage: bytes of what nothing refers to; it goes first.
        pinned, leased: bytes that cannot be evicted, for either reason.
        documents, blocks: how many.
        clock: of the eviction.
    """

    used: int
    quota: int
    entries: int
    unshared: int
    garbage: int
    pinned: int
    leased: int
    documents: int
    blocks: int
    clock: float


def stats(change: Change) -> Stats:
    """See `Store.stats`."""
    tree, documents = change.tree, change.documents

    def nbytes(keys: Iterable[str]) -> int:
        return sum(tree.entries[key].nbytes for key in keys)

    needed = tree.needed(row.tail for row in documents)
    unreferenced = sum(row.nbytes for row in tree.entries.values() if row.key not in needed)
    return Stats(
        used=change.place.used(),
        quota=change.quota,
        entries=nbytes(needed),
        unshared=sum(nbytes(tree.needed([row.tail])) for row in documents),
        garbage=unreferenced + sum(size for _, size in change.garbage()),
        pinned=nbytes(tree.needed(row.tail for row in documents if row.pinned)),
        leased=nbytes(tree.needed(leased(change.place.leases))),
        documents=len(documents),
        blocks=sum(row.kind == "block" for row in tree.entries.values()),
        clock=change.held.clock,
    )


def admit(change: Change, nbytes: int, tokens: Sequence[int] | np.ndarray, fingerprint: str) -> None:
    """See `Store.admit`."""
    kept = change.kept()
    if len(tokens):
        found = find(change.held, token_array(tokens), fingerprint)
        kept |= {row.key for row in found.blocks}
        nbytes -= nbytes * found.position // len(tokens)
    evictable = sum(row.nbytes for row in change.tree.entries.values() if row.key not in kept)
    garbage = sum(size for _, size in change.garbage())
    least = change.place.used() - evictable - garbage + change.overhead()
    if least + nbytes > change.quota:
        raise QuotaError(change.no_room(nbytes, kept, least + nbytes - change.quota))
