"""The thread that owns the model: it admits what waits, and gives those who run their turns."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from keyhole.serving.jobs import Job
from keyhole.serving.requests import Failed, FailureKind, OverloadedError, Queued
from keyhole.serving.turns import Turns

_log = logging.getLogger(__name__)
_MOST_SECONDS = 120  # after which a client should try again at the latest


class Worker:
    """Runs jobs in a thread of its own, in the order in which they came, as many at once as fit.

    A job that fails ends alone. If the thread itself ends, all jobs fail, and new ones are refused.

    Args:
        slots: jobs that run at once; memory: bytes they need together; queue: jobs that may wait.
        chunk: prompt tokens of one call.
        inside: what the thread is inside of, as long as it runs.
        clock: seconds.

    Attributes:
        ended: jobs that ended, by their outcome or the kind of their failure.
        refused: jobs that were refused.
        lock: held while the worker's lists change; never during a piece of work.
    """

    def __init__(
        self,
        *,
        slots: int,
        memory: int,
        queue: int,
        chunk: int,
        inside: Callable[[], AbstractContextManager[object]] = nullcontext,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.slots, self.memory, self.queue = slots, memory, queue
        self.ended: Counter[str] = Counter()
        self.refused = 0
        self.lock = threading.Condition()
        self.waiting: deque[Job] = deque()
        self.running: Turns[Job] = Turns(chunk)
        self._inside, self._clock = inside, clock
        self._began: dict[Job, float] = {}
        self._seconds = 1.0  # that a job took, recent ones counting most
        self._closing = self._stopping = self._cancelled = False
        self._dead = ""  # why the thread ended
        self._thread = threading.Thread(target=self._run, name="keyhole-serving", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._dead

    @property
    def held(self) -> int:
        """Bytes that running jobs were admitted with."""
        return sum(job.needs for job in self.running)

    def check_room(self) -> None:
        """Raise OverloadedError if a job would be refused now."""
        with self.lock:
            if self._closing or self._dead:
                self.refused += 1
                raise OverloadedError(self._dead or "the server is stopping", self._retry_after())
            # A job waits for the thread, if for nothing else, so those that have a slot do not count.
            if len(self.waiting) >= self.queue + max(self.slots - len(self.running), 0):
                self.refused += 1
                raise OverloadedError(
                    f"{len(self.waiting)} requests wait, which is as many as may", self._retry_after()
                )

    def submit(self, job: Job) -> None:
        """Let a job wait for its turn.

        Raises:
            OverloadedError: as many wait as may, or the worker stops.
        """
        with self.lock:
            self.check_room()
            self.waiting.append(job)
            job.ticket.put(Queued(len(self.waiting)))
            self.lock.notify_all()

    def wake(self) -> None:
        """A ticket was cancelled."""
        with self.lock:
            self._cancelled = True
            self.lock.notify_all()

    def close(self, *, drain: bool, patience: float) -> bool:
        """See `Scheduler.close`."""
        with self.lock:
            self._closing = True
            self._stopping = self._stopping or not drain
            self.lock.notify_all()
        self._thread.join(patience if drain else None)
        with self.lock:
            self._stopping = True
            self.lock.notify_all()
        self._thread.join()
        return not self.ended["closed"] and not self._dead

    def _retry_after(self) -> int:
        ahead = len(self.waiting) / self.slots + 1
        return max(1, min(round(self._seconds * ahead), _MOST_SECONDS))

    def _run(self) -> None:
        why = "the server is stopping"
        try:
            with self._inside():
                while self._turn():
                    pass
        except BaseException as error:
            _log.exception("the thread that owns the model ended")
            why = f"the server's worker ended: {error}"
            self._dead = why
        finally:
            self._end_all(why, "model" if self._dead else "closed")

    def _turn(self) -> bool:
        """One piece of work; False where there will be none."""
        with self.lock:
            self._end_cancelled()
            self._admit()
            if self._stopping or (self._closing and not self.waiting and not self.running):
                return False
            job = self.running.next()
            if job is None:
                self.lock.wait()
                return True
        try:
            over = job.advance()
        except Exception as error:
            self._raised(job, error)
        else:
            if over:
                self._remove(job)
                self._finish(job)
                self._close(job)
        return True

    def _raised(self, job: Job, error: Exception) -> None:
        _log.info("a request failed", exc_info=error)
        self._remove(job)
        self._fail(job, job.failure(error))
        self._close(job)

    def _finish(self, job: Job) -> None:
        try:
            job.finish()
        except Exception as error:
            self._fail(job, job.failure(error))
            return
        self.ended[job.outcome] += 1
        self._seconds += 0.1 * (self._clock() - self._began.pop(job) - self._seconds)

    def _admit(self) -> None:
        """Let those who wait run, in their order, as far as slots and memory go."""
        before = len(self.waiting)
        while self.waiting and len(self.running) < self.slots:
            job = self.waiting[0]
            if self.running and self.held + job.needs > self.memory:
                break
            self.running.add(self.waiting.popleft())
            self._began[job] = self._clock()
        if len(self.waiting) != before:
            self._tell_places()

    def _tell_places(self) -> None:
        for place, job in enumerate(self.waiting, 1):
            job.ticket.put(Queued(place))

    def _end_cancelled(self) -> None:
        if not self._cancelled:
            return
        self._cancelled = False
        gone = [job for job in (*self.waiting, *self.running) if job.ticket.cancelled]
        for job in gone:
            self._remove(job)
            self._fail(job, Failed("the request was cancelled", "stopped"))
            self._close(job)

    def _remove(self, job: Job) -> None:
        """Let the next one have its place."""
        with self.lock:
            if job in self.waiting:
                self.waiting.remove(job)
                self._tell_places()
            else:
                self.running.remove(job)

    def _close(self, job: Job) -> None:
        try:
            job.close()
        except Exception:
            _log.exception("a request could not be closed")

    def _fail(self, job: Job, failed: Failed) -> None:
        self._began.pop(job, None)
        self.ended[failed.kind] += 1
        job.ticket.put(failed)

    def _end_all(self, why: str, kind: FailureKind) -> None:
        with self.lock:
            self._closing = True
            for job in (*self.waiting, *self.running):
                self._remove(job)
                self._fail(job, Failed(why, kind))
                self._close(job)
