"""What requests read, on its way from the workers to the scheduler; imports nothing of vLLM."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from keyhole.engines.vllm.usage import RequestUsage

COUNTED: tuple[str, ...] = ("steps", "context", "read", "bytes")
_UNDER_WAY = 2  # steps that vLLM schedules before it has seen the answers of earlier ones


@dataclass(frozen=True)
class StepUsage:
    """Totals of the requests that had a step, so far, of so many workers of one engine."""

    totals: Mapping[str, RequestUsage]
    workers: int = 1

    def joined(self, other: StepUsage) -> StepUsage:
        """With those of another worker, which has other heads: a mean of tokens, a sum of bytes."""
        parts = ((self.workers, self.totals), (other.workers, other.totals))
        workers = self.workers + other.workers
        joined = {
            request: RequestUsage(
                steps=self.totals[request].steps,
                context=self.totals[request].context,
                read=sum(count * totals[request].read for count, totals in parts) / workers,
                bytes=sum(totals[request].bytes for _, totals in parts),
                held=self.totals[request].held + other.totals[request].held,
            )
            for request in self.totals.keys() & other.totals.keys()
        }
        return StepUsage(joined, workers)


class Accounts:
    """The scheduler's account of what each request and all together have read."""

    def __init__(self) -> None:
        self._totals: dict[str, RequestUsage] = {}
        self._new = dict.fromkeys(COUNTED, 0.0)
        self._closed: deque[frozenset[str]] = deque()

    def __len__(self) -> int:
        return len(self._totals)

    def note(self, usage: StepUsage) -> None:
        """Take in the totals after a step. Those of a preempted request begin anew."""
        for request, total in usage.totals.items():
            before = self._totals.get(request, RequestUsage())
            if total.steps < before.steps:
                before = RequestUsage()
            for name in COUNTED:
                self._new[name] += getattr(total, name) - getattr(before, name)
            self._totals[request] = total

    def of(self, request: str) -> RequestUsage:
        """The totals of a request so far."""
        return self._totals.get(request, RequestUsage())

    def close(self, requests: Iterable[str]) -> None:
        """These are finished, as a step is scheduled; one under way may still bring their totals."""
        self._closed.append(frozenset(requests))
        if len(self._closed) > _UNDER_WAY:
            for request in self._closed.popleft():
                self._totals.pop(request, None)

    def take_new(self) -> dict[str, float]:
        """What was read since this was last asked; empty if nothing was."""
        taken, self._new = self._new, dict.fromkeys(COUNTED, 0.0)
        return taken if taken["steps"] else {}
