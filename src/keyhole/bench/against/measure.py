"""All engines at all lengths, in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from keyhole.bench.against.engine import Entrant
from keyhole.bench.against.figures import Figure
from keyhole.bench.against.worker import Worker
from keyhole.bench.checks import CheckFailedError

_FARTHEST = 1.0  # nats between the next-token distributions of two engines that have the same weights

Report = Callable[[str, float, float | None], None]


class Plan(NamedTuple):
    """What is measured.

    Attributes:
        lengths: tokens in the cache, ascending.
        ids: a prompt; lengths up to its own are computed from it, longer ones are synthetic.
        rounds: turns of each engine at each length.
        steps: that are counted in a turn, behind one that is not, which wakes up threads and caches.
    """

    lengths: tuple[int, ...]
    ids: list[int]
    rounds: int
    steps: int

    @property
    def room(self) -> int:
        """Tokens that all turns append."""
        return 1 + self.rounds * (self.steps + 1)


class Found(NamedTuple):
    """Figures, a line on each engine, and what a reader has to know."""

    figures: list[Figure]
    about: dict[str, str]
    notes: list[str]


@contextmanager
def workers(entrants: Sequence[Entrant]) -> Iterator[list[Worker]]:
    """A process for each engine, ended with the block.

    Raises:
        EngineError: one does not load its model.
    """
    made: list[Worker] = []
    try:
        made.extend(map(Worker, entrants))  # one after the other, so that a failure leaves those before
        yield made
    finally:
        for worker in made:
            worker.close()


def measure(engines: Sequence[Worker], plan: Plan, report: Report, *, ours: frozenset[str]) -> Found:
    """Every engine at every length; at each of them, prompts and then steps take turns.

    Args:
        ours: names of the engines that are Keyhole.

    Raises:
        EngineError: an engine raised an error.
        CheckFailedError: two engines do not compute the same model.
    """
    figures, notes = [], []
    for number, tokens in enumerate(plan.lengths):
        report(f"{tokens:,} tokens", number, len(plan.lengths))
        loaded = {engine.name: _start(engine, tokens + plan.room) for engine in engines}
        seconds = {engine.name: _hold(engine, tokens, plan) for engine in engines}
        if tokens <= len(plan.ids):
            notes += _agreement(engines, tokens)
        steps = _turns(engines, plan)
        figures += [
            Figure(
                engine=engine.name,
                keyhole=engine.name in ours,
                tokens=tokens,
                synthetic=seconds[engine.name] is None,
                prompt_seconds=seconds[engine.name],
                step_ms=tuple(1e3 * each for each in steps[engine.name]),
                loaded=loaded[engine.name],
                peak=engine.memory().peak,
            )
            for engine in engines
        ]
    return Found(figures, {engine.name: engine.about for engine in engines}, notes)


def _start(engine: Worker, capacity: int) -> int:
    """An empty cache; returns the bytes in memory."""
    engine.call("start", capacity)
    return engine.memory(forget=True).resident


def _hold(engine: Worker, tokens: int, plan: Plan) -> float | None:
    """Put tokens into the cache; returns the seconds that computing them took."""
    if tokens <= len(plan.ids):
        return engine.timed("read", plan.ids[:tokens])[0]
    engine.call("fill", tokens)
    engine.memory(forget=True)  # what filling took is no cost of an engine
    return None


def _turns(engines: Sequence[Worker], plan: Plan) -> dict[str, list[float]]:
    """Seconds of steps: a few at a time, as decoding is, each round beginning with another engine."""
    found: dict[str, list[float]] = {engine.name: [] for engine in engines}
    for number in range(plan.rounds):
        for place in range(len(engines)):
            engine = engines[(place + number) % len(engines)]
            found[engine.name] += engine.timed("step", times=plan.steps + 1)[1:]
    return found


def _agreement(engines: Sequence[Worker], tokens: int) -> list[str]:
    """How far the predictions behind the prompt are from those of the first engine.

    Raises:
        CheckFailedError: so far that it is not the same model.
    """
    first, *others = engines
    expected, notes = _log_probabilities(first.call("logits")), []
    for other in others:
        logits = other.call("logits")
        if logits is None:
            notes.append(f"{other.name} does not tell logits, so they are not compared")
            continue
        found = _log_probabilities(logits)
        distance = float((np.exp(expected) * (expected - found)).sum())
        what = f"KL({first.name} || {other.name}) of the token behind {tokens:,}: {distance:.4f} nats"
        if not distance <= _FARTHEST:
            raise CheckFailedError(f"{what}; they do not compute the same model, so nothing is reported")
        notes.append(what)
    return notes


def _log_probabilities(logits: Any) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max()
    return shifted - np.log(np.exp(shifted).sum())
