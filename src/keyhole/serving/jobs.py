"""What the worker works on: pieces of work, each about one call of the model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator

from keyhole.core.closing import Closing
from keyhole.serving.requests import Failed
from keyhole.serving.tickets import Ticket


class Job(Closing):
    """Work for one ticket, by the thread that owns the model.

    Attributes:
        needs: bytes that it holds at most.
        unread: prompt tokens up to the first token of the answer, 0 from there on. While something is
            computed that takes longer than a call, it is more than a call has.
        outcome: how it ended, in a word, where it ended well.
    """

    def __init__(self, ticket: Ticket, needs: int, unread: int) -> None:
        self.ticket, self.needs, self.unread = ticket, needs, unread
        self.outcome: str = "done"
        self._work: Generator[None] | None = None

    def advance(self) -> bool:
        """Do the next piece; returns whether it was the last one."""
        if self._work is None:
            self._work = self.work()
        try:
            next(self._work)
        except StopIteration:
            return True
        return False

    @abstractmethod
    def work(self) -> Generator[None]:
        """All of it, one piece up to each `yield`."""

    @abstractmethod
    def finish(self) -> None:
        """The work is done: report the last event, now or soon. `close` follows."""

    @abstractmethod
    def failure(self, error: Exception) -> Failed:
        """The last event where the work raised `error`."""

    def close(self) -> None:
        """Let go of what is held."""
        if self._work is not None:
            self._work.close()
