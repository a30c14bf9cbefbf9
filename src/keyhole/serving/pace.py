"""How jobs ended, and how long one takes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Hashable

_MOST_SECONDS = 120  # after which a client should try again at the latest
_NEWEST = 0.1  # what the newest job counts in the mean


class Pace:
    """Counts of jobs, and the seconds of those that ended well, recent ones counting most.

    Attributes:
        ended: jobs that ended, by their outcome or the kind of their failure.
        refused: jobs that were refused.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.ended: Counter[str] = Counter()
        self.refused = 0
        self._clock, self._seconds = clock, 1.0
        self._began: dict[Hashable, float] = {}

    def begin(self, job: Hashable) -> None:
        """A job runs from now on."""
        self._began[job] = self._clock()

    def end(self, job: Hashable, outcome: str, *, well: bool) -> None:
        """It ended."""
        began = self._began.pop(job, None)
        self.ended[outcome] += 1
        if well and began is not None:
            self._seconds += _NEWEST * (self._clock() - began - self._seconds)

    def retry_after(self, waiting: int, slots: int) -> int:
        """Whole seconds in which one more may find room, behind so many."""
        return max(1, min(round(self._seconds * (waiting / slots + 1)), _MOST_SECONDS))
