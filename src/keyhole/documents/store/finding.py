"""What is stored of the beginning of some tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from keyhole.documents.store.database import Connection
from keyhole.documents.store.keys import BLOCK, block_key, root_key
from keyhole.documents.store.rows import EntryRow


@dataclass(frozen=True)
class Found:
    """Stored blocks from the first token on, in order.

    Attributes:
        partial: a block behind them of which only the first `agreeing` tokens are the next ones, or None.
    """

    blocks: tuple[EntryRow, ...]
    partial: EntryRow | None
    agreeing: int

    @property
    def tail(self) -> EntryRow | None:
        return self.partial or (self.blocks[-1] if self.blocks else None)

    @property
    def position(self) -> int:
        """Tokens of the blocks."""
        return sum(row.count for row in self.blocks)


def find(held: Connection, ids: np.ndarray, fingerprint: str) -> Found:
    """The longest beginning of `ids`, cut into blocks as a document of these tokens would be."""
    blocks: list[EntryRow] = []
    parent = root_key(fingerprint)
    for start in range(0, len(ids), BLOCK):
        row = held.entry(block_key(parent, ids[start : start + BLOCK]))
        if row is None:
            break
        blocks.append(row)
        parent = row.key
    rest = ids[sum(row.count for row in blocks) :]
    partial, agreeing = _longest(held, parent, rest[:BLOCK])
    return Found(tuple(blocks), partial, agreeing)


def _longest(held: Connection, parent: str, ids: np.ndarray) -> tuple[EntryRow | None, int]:
    """The block behind `parent` that begins with most of `ids`."""
    best, agreeing = None, 0
    for row in held.rows(EntryRow, parent=parent, kind="block") if len(ids) else ():
        own = np.frombuffer(row.tokens, "<u4")
        same = own[: len(ids)] == ids[: len(own)]
        count = len(same) if same.all() else int(same.argmin())
        if count > agreeing:
            best, agreeing = row, count
    return best, agreeing
