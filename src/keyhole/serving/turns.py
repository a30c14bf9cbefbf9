"""Whose turn it is: the order in which prompts and decode steps share a model. It knows no model.

A *turn* is one decode step of each answer, with one call of one of the longer prompts after every 16 of them,
and at least one. *Short* prompts, which one call can finish, go before all that, as long as they have credit:
what others are given adds to it, in tokens, up to the tokens of four calls. So a short prompt waits for the
call that is being made and for short ones before it, others wait at most about twice as long as without any
short ones. Calls of long prompts go in turn to the one that came first and to the one with the fewest tokens
left, so that all get on, and few are held half read.
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


_STEPS = 16  # decode steps that count as much as a call with prompt tokens
_BURST = 4  # calls that short prompts may take at once

Job = TypeVar("Job", bound=Sharing)


class Turns(Generic[Job]):
    """The jobs that run, and which of them is next.

    Args:
        chunk: prompt tokens of one call.
    """

    def __init__(self, chunk: int) -> None:
        self._chunk = chunk
        self._step = max(1, chunk // _STEPS)
        self._jobs: list[Job] = []  # in order of arrival
        self._served: dict[Job, int] = {}  # calls of each long prompt
        self._calls = self._since = 0  # of long prompts; decode steps since the last one
        self._steps: deque[Job] = deque()  # those which are still to decode a step in this turn
        self._long = False  # whether a long prompt is still to be served in this turn
        self._credit = self._most = _BURST * chunk  # tokens of short prompts that may be read now

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(tuple(self._jobs))

    def add(self, job: Job) -> None:
        """Let a job take part."""
        self._jobs.append(job)

    def remove(self, job: Job) -> None:
        """Let it take part no more."""
        self._jobs.remove(job)
        self._served.pop(job, None)
        if job in self._steps:
            self._steps.remove(job)

    def next(self) -> Job | None:
        """The job that goes on by one call of the model; None where there is none."""
        short = next((job for job in self._jobs if job.unread and not self._is_long(job)), None)
        if short is None or self._credit <= 0:
            found = self._other()
            if found is not None or short is None:
                return found
        self._credit = max(self._credit - short.unread, -self._chunk)
        return short

    def _other(self) -> Job | None:
        """What is next beside short prompts, which earn credit by it."""
        found = self._rest_of_turn()
        if found is None:
            self._long = True
            self._steps.extend(job for job in self._jobs if not job.unread)
            found = self._rest_of_turn()
        return found

    def _rest_of_turn(self) -> Job | None:
        if self._steps and self._since < _STEPS:
            return self._stepped()
        if not self._long and self._since < _STEPS:
            return None
        long = [job for job in self._jobs if self._is_long(job)]
        self._long, self._since = False, 0
        if not long:
            return self._stepped() if self._steps else None
        self._earn(self._chunk)
        found = min(long, key=lambda job: job.unread) if self._calls % 2 else long[0]
        self._calls += 1
        self._served[found] = self._served.get(found, 0) + 1
        return found

    def _is_long(self, job: Job) -> bool:
        """Also the end of a long prompt, but for its last token; not a prompt of which most was stored."""
        begun = self._served.get(job, 0) > 1
        return job.unread > (1 if begun else self._chunk)

    def _stepped(self) -> Job:
        self._since += 1
        self._earn(self._step)
        return self._steps.popleft()

    def _earn(self, tokens: int) -> None:
        self._credit = min(self._credit + tokens, self._most)
