"""What a submitted request is seen as from outside: its events, in any thread or asyncio loop."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic

from keyhole.serving.requests import LAST, Event, Failed, Finished, Logprob, Piece


class RequestFailedError(RuntimeError):
    """A request that ended by `failed`."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.error)
        self.failed = failed


@dataclass(frozen=True)
class Served:
    """A whole answer."""

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[Logprob, ...]
    finished: Finished


class Ticket:
    """One submitted request. Its events are taken once, by one thread or one asyncio task.

    Attributes:
        id: tells it from other tickets of the process.
        cancelled: whether `cancel` was called.
    """

    def __init__(self, wake: Callable[[], object] = lambda: None) -> None:
        self.id = uuid.uuid4().hex
        self.cancelled = False
        self._wake = wake
        self._events: deque[Event] = deque()
        self._changed = threading.Condition()
        self._listener: Callable[[], object] | None = None
        self._over = False

    def put(self, event: Event) -> None:
        """Report an event; nothing follows one of LAST."""
        with self._changed:
            if self._over:
                return
            self._over = isinstance(event, LAST)
            self._events.append(event)
            self._changed.notify_all()
            listener = self._listener
        if listener is not None:
            listener()

    @property
    def over(self) -> bool:
        """Whether the last event was reported."""
        return self._over

    def cancel(self) -> None:
        """Give up; the request is freed within a step."""
        self.cancelled = True
        self._wake()

    async def events(self) -> AsyncGenerator[Event, None]:
        """All events, as they come. Leaving early cancels the ticket."""
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop is closed, and nobody waits
                loop.call_soon_threadsafe(arrived.set)

        self._listener = wake
        last = None
        try:
            while not isinstance(last, LAST):
                arrived.clear()
                for last in self._taken():
                    yield last
                if not isinstance(last, LAST) and not self._events:
                    await arrived.wait()
        finally:
            self._listener = None
            if not isinstance(last, LAST):
                self.cancel()

    def __iter__(self) -> Iterator[Event]:
        """All events, blocking."""
        yield from self._until(None)

    def result(self, timeout: float | None = None) -> Served:
        """The whole answer.

        Raises:
            RequestFailedError: there is none.
            TimeoutError: it did not come in `timeout` seconds; the request goes on.
        """
        pieces: list[Piece] = []
        for event in self._until(timeout):
            if isinstance(event, Failed):
                raise RequestFailedError(event)
            if isinstance(event, Piece):
                pieces.append(event)
            if isinstance(event, Finished):
                return _served(pieces, event)
        raise TypeError("this ticket is of a document, which has no answer; iterate over its events")

    def _until(self, timeout: float | None) -> Iterator[Event]:
        ends = None if timeout is None else monotonic() + timeout
        last = None
        while not isinstance(last, LAST):
            with self._changed:
                left = None if ends is None else ends - monotonic()
                if not self._changed.wait_for(lambda: self._events, left):
                    raise TimeoutError(f"no answer in {timeout} seconds")
            for last in self._taken():
                yield last

    def _taken(self) -> list[Event]:
        with self._changed:
            found = list(self._events)
            self._events.clear()
        return found


def _served(pieces: list[Piece], finished: Finished) -> Served:
    return Served(
        "".join(piece.text for piece in pieces),
        tuple(token for piece in pieces for token in piece.tokens),
        tuple(one for piece in pieces for one in piece.logprobs),
        finished,
    )
