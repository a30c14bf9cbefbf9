"""Whose turn it is: the order in which prompts and decode steps share a model. It knows no model.

A *turn* has three parts: prompts that one call can finish (*short* ones, and the ends of long ones), in all
about the tokens of one call; one decode step of each answer; one call of one of the longer prompts. Short
prompts go before anything else of the turn, also when they arrive in its middle. So a short prompt waits for
the call that is being made and for other short ones, a decode step for one turn, and of n long prompts each
advances every n turns.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar


class Sharing(Protocol):
    """What shares the model.

    Attributes:
        unread: prompt tokens up to the first token of the answer; 0 from there on.
    """

    @property
    def unread(self) -> int: ...


Job = TypeVar("Job", bound=Sharing)


class Turns(Generic[Job]):
    """The jobs that run, and which of them is next.

    Args:
        chunk: prompt tokens of one call.
    """

    def __init__(self, chunk: int) -> None:
        self._chunk = chunk
        self._jobs: list[Job] = []  # in order of arrival
        self._served: dict[Job, int] = {}  # the turn in which a long prompt was last served
        self._turn = 1
        self._steps: deque[Job] = deque()  # those which are still to decode a step in this turn
        self._short = chunk  # tokens of short prompts that this turn still has room for
        self._long = True  # whether a long prompt is still to be served

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(tuple(self._jobs))

    def add(self, job: Job) -> None:
        """Let a job take part; the turn that goes on has room for it if it is short."""
        self._jobs.append(job)

    def remove(self, job: Job) -> None:
        """Let it take part no more."""
        self._jobs.remove(job)
        self._served.pop(job, None)
        if job in self._steps:
            self._steps.remove(job)

    def next(self) -> Job | None:
        """The job that goes on by one call of the model; None where there is none."""
        if not self._jobs:
            return None
        found = self._in_turn()
        if found is None:
            self._short, self._long, self._turn = self._chunk, True, self._turn + 1
            self._steps.extend(job for job in self._jobs if not job.unread)
            found = self._in_turn()
        return found

    def _in_turn(self) -> Job | None:
        if self._short > 0:
            short = next((job for job in self._jobs if 0 < job.unread <= self._chunk), None)
            if short is not None:
                self._short -= short.unread
                return short
        if self._steps:
            return self._steps.popleft()
        if self._long:
            self._long = False
            long = [job for job in self._jobs if job.unread > self._chunk]
            if long:
                found = min(long, key=lambda job: self._served.get(job, 0))
                self._served[found] = self._turn
                return found
        return None
