"""What a reader holds while it reads: entries that neither eviction, gc nor `remove` takes from under it."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from keyhole.documents.store.entry import Entry
from keyhole.documents.store.records import Document


class Leased:
    """A lease until `close`, the end of its `with` block, of the object, or of the process."""

    def close(self) -> None:
        """Give the lease back; tensors already mapped stay readable."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Match(Leased):
    """What is stored of the beginning of some tokens.

    Attributes:
        blocks: whole stored blocks from the first token on; the last may have fewer than `BLOCK` tokens.
        partial: a stored block of which only the first `length - (tokens of blocks)` tokens agree, or None;
            its rows up to there can be copied.
        length: tokens that agree, `partial` included; the token at this place is the first to differ.
    """

    blocks: tuple[Entry, ...]
    partial: Entry | None
    length: int


class OpenDocument(Leased):
    """A document in use. It may be removed or replaced meanwhile; its entries stay until it is closed.

    Attributes:
        blocks: in order; empty where the document is a state.
        state: the state, or None.
    """

    document: Document
    blocks: tuple[Entry, ...]
    state: Entry | None

    def index(self, method: str, version: str) -> Entry | None:
        """The index of a method, or None where it must be built (none, or of another version)."""
        raise NotImplementedError
