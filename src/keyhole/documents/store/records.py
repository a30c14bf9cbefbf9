"""What the store says about its documents."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
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
    tokens: np.ndarray
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


@dataclass(frozen=True)
class Stats:
    """Of a store.

    Attributes:
        used: bytes of all files and directories; `quota` is the most there may be.
        entries: bytes of what documents refer to.
        garbage: bytes of files nothing refers to; they go first.
        pinned, leased: bytes that cannot be evicted, for either reason.
        documents, blocks: how many.
        unshared: bytes that the documents would take without sharing.
        clock: of the eviction.
    """

    used: int
    quota: int
    entries: int
    garbage: int
    pinned: int
    leased: int
    documents: int
    blocks: int
    unshared: int
    clock: float
