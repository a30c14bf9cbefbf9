"""Entries and documents as a tree: who needs what."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush
from itertools import takewhile

from keyhole.documents.store.rows import DocumentRow, EntryRow


class Tree:
    """All entries by key; `children` are blocks and indexes, `notes` go with the entry they are behind."""

    def __init__(self, entries: Iterable[EntryRow]) -> None:
        self.entries = {row.key: row for row in entries}
        self.children: dict[str, list[str]] = defaultdict(list)
        self.notes: dict[str, list[str]] = defaultdict(list)
        for row in self.entries.values():
            if row.parent in self.entries:
                (self.notes if row.kind == "note" else self.children)[row.parent].append(row.key)

    def chain(self, tail: str) -> list[EntryRow]:
        """From the root to an entry; without one of this key, nothing."""
        rows = []
        while tail in self.entries:
            rows.append(self.entries[tail])
            tail = rows[-1].parent
        return rows[::-1]

    def needed(self, tails: Iterable[str]) -> set[str]:
        """Keys of the chains to these tails, and of the indexes and notes behind them."""
        keys: set[str] = set()
        for tail in tails:
            keys.update(row.key for row in self.behind(tail))
            while tail in self.entries and tail not in keys:
                keys.add(tail)
                tail = self.entries[tail].parent
        return keys

    def behind(self, tail: str) -> list[EntryRow]:
        """Indexes and notes of the documents that end at an entry."""
        keys = (*self.children.get(tail, ()), *self.notes.get(tail, ()))
        return [row for row in map(self.entries.__getitem__, keys) if row.kind != "block"]

    def below(self, key: str) -> list[EntryRow]:
        """An entry and all that needs it, leaves first."""
        keys = [key]
        for found in keys:  # grows meanwhile
            keys.extend((*self.notes.get(found, ()), *self.children.get(found, ())))
        return [self.entries[found] for found in reversed(keys)]

    def eviction(self, kept: set[str]) -> Iterator[EntryRow]:
        """Entries in the order in which they are evicted, without those of `kept`, which has whole chains.

        Prefix-aware GDSF: of the leaves, the one of the least priority; it makes a leaf of its parent when it
        is the last child. Ties: the one used least recently, then the lower key.
        """
        left = {key: len(children) for key, children in self.children.items()}

        def ranked(row: EntryRow) -> tuple[float, float, str]:
            return row.priority, row.used, row.key

        free = (row for row in self.entries.values() if row.kind != "note" and row.key not in kept)
        leaves = [ranked(row) for row in free if not left.get(row.key)]
        heapify(leaves)
        while leaves:
            row = self.entries[heappop(leaves)[-1]]
            yield row
            yield from map(self.entries.__getitem__, self.notes.get(row.key, ()))
            if row.parent in self.entries:
                left[row.parent] -= 1
                if not left[row.parent] and row.parent not in kept:
                    heappush(leaves, ranked(self.entries[row.parent]))


def shortened(document: DocumentRow, tree: Tree, gone: set[str]) -> tuple[str, int]:
    """Tail and stored tokens of a document when some entries are gone, with all behind them."""
    left = list(takewhile(lambda row: row.key not in gone, tree.chain(document.tail)))
    return (left[-1].key if left else ""), sum(row.count for row in left)
