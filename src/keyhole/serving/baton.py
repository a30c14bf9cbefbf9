"""Work written as one function that takes turns with others: it runs in a thread that others wait for."""

from __future__ import annotations

from collections.abc import Callable, Generator
from threading import Semaphore, Thread


class _Stopped(BaseException):
    """The work is to end where it is."""


def in_turns(work: Callable[[Callable[[], None]], None]) -> Generator[None]:
    """Pieces of `work`, each up to where it calls what it is given; only then, or at its end, it is left.

    Either the work runs or its caller does, never both. What it raises is raised here. Closing the iterator
    ends the work where it waits, with its `finally` blocks.
    """
    go, done = Semaphore(0), Semaphore(0)
    stopped = over = False
    raised: list[BaseException] = []

    def pause() -> None:
        done.release()
        go.acquire()
        if stopped:
            raise _Stopped

    def run() -> None:
        nonlocal over
        go.acquire()
        try:
            work(pause)
        except _Stopped:
            pass
        except BaseException as error:
            raised.append(error)
        finally:
            over = True
            done.release()

    Thread(target=run, name="keyhole-adding", daemon=True).start()
    try:
        while True:
            go.release()
            done.acquire()
            if over:
                break
            yield
    finally:
        if not over:
            stopped = True
            go.release()
            done.acquire()
    if raised:
        raise raised[0]
