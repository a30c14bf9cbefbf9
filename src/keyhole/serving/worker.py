"""The thread that owns the model: it admits what waits, and gives those who run their turns."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from keyhole.serving.jobs import Job
from keyhole.serving.pace import Pace
from keyhole.serving.requests import Failed, FailureKind, OverloadedError, Queued
from keyhole.serving.turns import Turns

_log = logging.getLogger(__name__)


class Worker:
    """Runs jobs in a thread of its own, in the order in which they came, as many at once as fit.

    A job that fails ends alone. If the thread itself ends, all jobs fail, and new ones are refused.

    Args:
        slots: jobs that run at once; memory: bytes they need together; queue: jobs that may wait.
        chunk: prompt tokens of one call.
        inside: what the thread is inside of, as long as it runs.
        clock: seconds.

    Attributes:
        pace: how jobs ended so far.
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
        self.pace = Pace(clock)
        self.lock = threading.Condition()
        self.waiting: deque[Job] = deque()
        self.running: Turns[Job] = Turns(chunk)
        self._inside = inside
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
            why = self._dead or ("the server is stopping" if self._closing else "")
            # A job waits for the thread, if for nothing else, so those that get a slot do not count.
            if not why and len(self.waiting) >= self.queue + max(self.slots - len(self.running), 0):
                why = f"{len(self.waiting)} requests wait, which is as many as may"
            if why:
                self.pace.refused += 1
                raise OverloadedError(why, self.pace.retry_after(len(self.waiting), self.slots))

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
        return not self.pace.ended["closed"] and not self._dead

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
            failed = job.failure(error)
            _log.warning(
                "a request failed: %s", failed.error, exc_info=error if failed.kind == "model" else None
            )
            self._drop([job], failed)
        else:
            if over:
                self._remove(job)
                self._finish(job)
                self._close(job)
        return True

    def _finish(self, job: Job) -> None:
        try:
            job.finish()
        except Exception as error:
            self._fail(job, job.failure(error))
            return
        self.pace.end(job, job.outcome, well=True)

    def _admit(self) -> None:
        """Let those who wait run, in their order, as far as slots and memory go."""
        before = len(self.waiting)
        while self.waiting and len(self.running) < self.slots:
            job = self.waiting[0]
            if self.running and self.held + job.needs > self.memory:
                break
            self.running.add(self.waiting.popleft())
            self.pace.begin(job)
        if len(self.waiting) != before:
            self._tell_places()

    def _tell_places(self) -> None:
        for place, job in enumerate(self.waiting, 1):
            job.ticket.put(Queued(place))

    def _end_cancelled(self) -> None:
        if self._cancelled:
            self._cancelled = False
            gone = [job for job in (*self.waiting, *self.running) if job.ticket.cancelled]
            self._drop(gone, Failed("the request was cancelled", "stopped"))

    def _end_all(self, why: str, kind: FailureKind) -> None:
        with self.lock:
            self._closing = True
            self._drop([*self.waiting, *self.running], Failed(why, kind))

    def _drop(self, jobs: Sequence[Job], failed: Failed) -> None:
        for job in jobs:
            self._remove(job)
            self._fail(job, failed)
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
        self.pace.end(job, failed.kind, well=False)
        job.ticket.put(failed)
