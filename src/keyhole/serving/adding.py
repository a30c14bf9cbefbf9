"""A document that is read and stored, in turns with requests."""

from __future__ import annotations

from collections.abc import Callable, Generator

from keyhole.core.errors import StoreError
from keyhole.documents.adding import Adding, add_document
from keyhole.documents.store import BLOCK, Document
from keyhole.serving.baton import in_turns
from keyhole.serving.jobs import Job
from keyhole.serving.measuring import Counts, failed_by
from keyhole.serving.requests import Added, Failed, Progress, Started
from keyhole.serving.shelf import UNUSABLE, Shelf
from keyhole.serving.tickets import Ticket


class AddingDocument(Job):
    """A document of `tokens` tokens, read block by block; what was read stays where it is interrupted."""

    def __init__(
        self, ticket: Ticket, adding: Adding, shelf: Shelf, counts: Counts, *, needs: int, tokens: int
    ) -> None:
        super().__init__(ticket, needs, unread=max(tokens, BLOCK + 1))
        self._adding, self._shelf, self._counts = adding, shelf, counts
        self._document: Document | None = None
        self._done: int | None = None
        self.outcome = "added"

    def work(self) -> Generator[None]:
        return in_turns(self._add)

    def _add(self, pause: Callable[[], None]) -> None:
        def advance(doing: str, done: int, total: int) -> None:
            if doing == "waiting":
                raise StoreError(f"{self._adding.name!r} is being added already; wait for that")
            self._count(done, total)
            pause()

        self._document = add_document(self._shelf.store, self._shelf.models, self._adding, advance)

    def _count(self, done: int, total: int) -> None:
        if self._done is None:
            self.ticket.put(Started(done))
            self._counts.add("cached", done)
        else:
            self._counts.add("prompt", done - self._done)
            self._counts.add("written", done - self._done)
        self._done = done
        self.ticket.put(Progress(done, total))

    def finish(self) -> None:
        document = self._document
        if document is None:
            raise RuntimeError("a document cannot be reported before it is read")
        if self._done is None:  # nothing was left to read
            self.ticket.put(Started(document.stored))
        self.ticket.put(Added(document))

    def failure(self, error: Exception) -> Failed:
        failed = failed_by(error, self._shelf.store.path)
        return Failed(failed.error, "document") if isinstance(error, UNUSABLE) else failed
