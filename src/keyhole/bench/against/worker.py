"""A process with one engine, which stays while others have their turns."""

from __future__ import annotations

import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from keyhole.bench.against.engine import Engine, Entrant

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
_CALM = 0.02  # seconds until the threads of the engine before have gone to sleep


class EngineError(RuntimeError):
    """An engine raised an error, or its process died."""


class Memory(NamedTuple):
    """Bytes of a process that are in memory: now, and at most since the peak was last forgotten."""

    resident: int
    peak: int


class Worker:
    """An engine in a process of its own.

    Raises:
        EngineError: from every method, with the engine's own error.
    """

    def __init__(self, entrant: Entrant) -> None:
        self.name = entrant.name
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, entrant.make), daemon=True)
        self._process.start()
        theirs.close()
        self.about: str = self._answer()

    def timed(self, what: str, *arguments: Any, times: int = 1) -> list[float]:
        """Call a method of the engine so often; seconds of each call."""
        time.sleep(_CALM)
        return self._ask("timed", what, times, arguments)

    def call(self, what: str, *arguments: Any) -> Any:
        """What a method of the engine returns."""
        return self._ask("call", what, 1, arguments)

    def memory(self, *, forget: bool = False) -> Memory:
        """Memory of the process; its peak is forgotten afterwards where `forget`."""
        return Memory(*self._ask("memory", "", 1, (forget,)))

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()

    def _ask(self, kind: str, what: str, times: int, arguments: tuple) -> Any:
        self._connection.send((kind, what, times, arguments))
        return self._answer()

    def _answer(self) -> Any:
        try:
            right, answer = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join(5)
            raise EngineError(
                f"the process of {self.name} ended with exit code {self._process.exitcode}; "
                "it may have run out of memory: give shorter lengths or fewer engines"
            ) from error
        if not right:
            raise EngineError(f"{self.name}: {answer}")
        return answer


def has_peaks() -> bool:
    """Whether this system tells the peak memory of a process."""
    return _STATUS.exists() and _CLEAR.exists()


def _serve(connection: Connection, make: Callable[[], Engine]) -> None:
    """Answer until the other side hangs up."""
    try:
        engine = make()
        connection.send((True, engine.about()))
        while True:
            kind, what, times, arguments = connection.recv()
            connection.send((True, _done(engine, kind, what, times, arguments)))
    except EOFError:
        return
    except Exception as error:
        connection.send((False, f"{type(error).__name__}: {error}"))


def _done(engine: Engine, kind: str, what: str, times: int, arguments: tuple) -> Any:
    if kind == "memory":
        return _memory(*arguments)
    method = getattr(engine, what)
    if kind == "call":
        return method(*arguments)
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        method(*arguments)
        seconds.append(time.perf_counter() - started)
    return seconds


def _memory(forget: bool) -> tuple[int, int]:
    found = {}
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("VmRSS", "VmHWM"):
            found[name] = int(value.split()[0]) * 1024
    if forget:
        _CLEAR.write_text(_RESET_PEAK)
    return found["VmRSS"], found["VmHWM"]
