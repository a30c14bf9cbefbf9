"""Adding a document."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from keyhole.documents.store.entry import Entry
from keyhole.documents.store.leases import Leased


class Writer(Leased):
    """Adds one document; made by `Store.begin`. Closing without `finish` leaves what was added, to resume.

    Attributes:
        blocks: what is stored so far, in order: found at the beginning, then appended.
        partial: a stored block whose first tokens continue `blocks`, or None: `position` counts them not;
            a caller may copy those rows instead of computing them (`partial_length` of them).
        state: the newest state, of a document that is one whole state; else None.
        position: tokens that are stored.
        total: tokens of the document.
    """

    blocks: tuple[Entry, ...]
    partial: Entry | None
    partial_length: int
    state: Entry | None
    position: int
    total: int

    @property
    def next(self) -> tuple[int, int]:
        """First and last (exclusive) token of the next block; both `total` where all is stored."""
        raise NotImplementedError

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
        raise NotImplementedError

    def put_state(
        self,
        position: int,
        tensors: dict[str, Tensor],
        *,
        seconds: float,
        facts: dict[str, Any] | None = None,
    ) -> Entry:
        """Store the state after `position` tokens, in place of the earlier one. `seconds`: since that one."""
        raise NotImplementedError

    def put_index(
        self,
        method: str,
        version: str,
        tensors: dict[str, Tensor],
        *,
        seconds: float,
        facts: dict[str, Any] | None = None,
    ) -> Entry:
        """Store the index of a method over the whole document; all blocks must be stored."""
        raise NotImplementedError

    def finish(self) -> None:
        """The document replaces the one that had its name; the lease ends.

        Raises:
            ValueError: `position` is not `total`.
        """
        raise NotImplementedError
