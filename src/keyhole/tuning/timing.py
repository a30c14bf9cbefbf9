"""Fair timing: candidates take turns, so that noise hits all alike, and each run starts with cold caches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import NamedTuple

import torch

from keyhole.tuning.machine import cache_bytes

_COLUMNS = 4096
_EVICTION = 4  # how many times the last-level cache an eviction reads
_PIECES = 16  # that it reads it in, each timed: short as a run is, and as seldom interrupted
_GPU_PIECES = 4  # of a GPU, where a run takes no longer than it takes to start it


class Times(NamedTuple):
    """Milliseconds of one candidate over the rounds."""

    median: float
    best: float


def _nothing() -> None:
    """What happens before and after a run that needs no preparation."""


@dataclass(frozen=True)
class Candidate:
    """Something to time.

    Attributes:
        name: the method, or what a baseline is called.
        impl: who computes it.
        run: what is timed.
        bytes: bytes that have to be moved for it.
        read_tokens: tokens whose keys and values it reads, beside those always read.
        before: done before each run, untimed.
        after: done after each run, untimed.
    """

    name: str
    impl: str
    run: Callable[[], object]
    bytes: float
    read_tokens: int
    before: Callable[[], object] = _nothing
    after: Callable[[], object] = _nothing

    def described(self) -> Candidate:
        """It without what it does, and so without the memory that holds on to."""
        return replace(self, run=_nothing, before=_nothing, after=_nothing)


class CacheFlusher:
    """Empties the caches by reading a buffer much larger than they are; that measures the bandwidth, too."""

    def __init__(self, nbytes: int = 0, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.nbytes = nbytes or _EVICTION * cache_bytes(self.device)
        pieces = _GPU_PIECES if self.device.type == "cuda" else _PIECES
        rows = max(1, self.nbytes // (pieces * 4 * _COLUMNS))
        self._pieces = torch.ones(pieces, rows, _COLUMNS, device=self.device)
        vector = torch.ones(_COLUMNS, device=self.device)
        # Which of the two reads faster depends on the processor.
        self._readers = (lambda piece: piece.mv(vector), torch.sum)
        self._seconds: tuple[list[float], ...] = tuple([] for _ in self._readers)
        for _ in self._readers:
            self()
        for seconds in self._seconds:
            del seconds[: len(seconds) // 2]  # the first calls are slower

    def __call__(self) -> None:
        turn = min(range(len(self._readers)), key=lambda index: len(self._seconds[index]))
        for piece in self._pieces:
            self._seconds[turn].append(clock(lambda piece=piece: self._readers[turn](piece), self.device))

    @property
    def bandwidth(self) -> float:
        """Bytes a millisecond: the median of the faster way to read."""
        return self._pieces[0].nbytes / (min(median(seconds) for seconds in self._seconds) * 1e3)


Clock = Callable[[Callable[[], object], torch.device], float]


def clock(run: Callable[[], object], device: torch.device | None = None) -> float:
    """Seconds of one run; on a GPU from the moment it can begin to the end of the last work queued."""
    if device is not None and device.type == "cuda":
        return _clock_gpu(run)
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def cpu_clock(run: Callable[[], object], device: torch.device) -> float:  # noqa: ARG001
    """Seconds that this thread computed for one run; what other processes took of the processor is not in."""
    start = time.thread_time()
    run()
    return time.thread_time() - start


def interleave(
    candidates: Sequence[Candidate], *, rounds: int, flusher: CacheFlusher, clock: Clock = clock
) -> list[Times]:
    """Time the candidates in turn, each round starting with another one, after one round that does not count.

    Raises:
        ValueError: no round at all.
    """
    if rounds < 1:
        raise ValueError(f"{rounds} rounds are too few; give at least 1")
    seconds: list[list[float]] = [[] for _ in candidates]
    for number in range(rounds + 1):
        for place in range(len(candidates)):
            index = (place + number) % len(candidates)
            candidate = candidates[index]
            candidate.before()
            flusher()
            elapsed = clock(candidate.run, flusher.device)
            candidate.after()
            if number:
                seconds[index].append(elapsed)
    return [Times(median(runs) * 1e3, min(runs) * 1e3) for runs in seconds]


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    """Compute with so many threads inside the block; 0 leaves torch's info.

    Raises:
        ValueError: a negative number.
    """
    if count < 0:
        raise ValueError(f"{count} threads are out of range; give 0 for torch's default, or at least 1")
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _clock_gpu(run: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3
