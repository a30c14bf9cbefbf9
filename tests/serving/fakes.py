"""Jobs without a model."""

from __future__ import annotations

import threading

from keyhole.serving.jobs import Job
from keyhole.serving.requests import Failed, Finished, Piece, ServedUsage
from keyhole.serving.tickets import Ticket

CHUNK = 10
USAGE = ServedUsage(0, 0, 0, 0, "fake", 0.0, 0.0, 1.0, 0.0, {}, 0.0)


class Fake(Job):
    """A prompt of so many tokens and an answer of so many steps.

    Attributes:
        log: of all jobs that share it, who did a piece of work, and how many prompt tokens that was.
    """

    def __init__(
        self, prompt=1, steps=1, *, log=None, needs=1, ticket=None, gate=None, raises=None, name=None
    ):
        super().__init__(ticket or Ticket(), needs, prompt)
        self.steps, self.gate, self.raises = steps, gate, raises
        self.log = [] if log is None else log
        self.name = self if name is None else name
        self.closed = 0

    def work(self):
        while self.unread > CHUNK:
            self.unread -= self._did(CHUNK)
            yield
        self._did(self.unread)
        for step in range(self.steps):
            self.unread = 0
            yield
            self._did(0)
            self.ticket.put(Piece(f"{step} ", (step,)))

    def _did(self, tokens):
        if self.gate is not None:
            assert self.gate.wait(10)
        self.log.append((self.name, tokens))
        if self.raises is not None:
            raise self.raises
        return tokens

    def finish(self):
        self.ticket.put(Finished("stop", USAGE))

    def failure(self, error):
        return Failed(str(error), "model")

    def close(self):
        super().close()
        self.closed += 1


def ended(ticket):
    """The last event of a ticket, waited for."""
    found = []
    thread = threading.Thread(target=lambda: found.extend(ticket), daemon=True)
    thread.start()
    thread.join(20)
    assert found, "no last event came"
    return found[-1]
