"""All benchmarks of a GPU in one call, as long as time is left."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from keyhole.bench.case import Case
from keyhole.bench.conditions import conditions
from keyhole.bench.gpu.build import build
from keyhole.bench.gpu.decode import decode
from keyhole.bench.gpu.offload import offload
from keyhole.bench.gpu.prompt import prompt
from keyhole.bench.gpu.scan import scan
from keyhole.bench.gpu.step import step
from keyhole.bench.result import Result
from keyhole.bench.rows import write_rows
from keyhole.bench.shapes import Shape
from keyhole.tuning.timing import CacheFlusher


class Part(NamedTuple):
    """A measurement, and what it is called."""

    name: str
    measure: Callable[[CacheFlusher], list[Result]]


class Plan(NamedTuple):
    """What is measured.

    Attributes:
        case: a layer; its length, batch and device.
        shape: a model.
        method: what decodes.
        batches: of the decode steps.
        lengths: of the decode steps, beside that of the case.
        prompts: lengths of prompts.
        tau: SALE's threshold.
        rounds: the median of which is taken.
        seconds: after which no further measurement is begun.
    """

    case: Case
    shape: Shape
    method: str
    batches: tuple[int, ...] = (1, 8, 32)
    lengths: tuple[int, ...] = (32_768, 524_288)
    prompts: tuple[int, ...] = (65_536, 131_072)
    tau: float = 1e-4
    rounds: int = 15
    seconds: float = 420.0

    def parts(self) -> Iterator[Part]:
        """The measurements, those that matter most first."""
        case, rounds = self.case, self.rounds

        def layer(case: Case) -> Part:
            name = f"decode-{case.tokens}-batch-{case.batch}"
            return Part(name, lambda flusher: decode(case, self.method, rounds=rounds, flusher=flusher))

        def sparse(tokens: int) -> Part:
            long = replace(case, tokens=tokens)
            return Part(f"prompt-{tokens}", lambda flusher: prompt(long, self.tau, rounds=5, flusher=flusher))

        yield from (layer(replace(case, batch=batch)) for batch in self.batches)
        yield Part("scan", lambda flusher: scan(case, self.method, rounds=rounds, flusher=flusher))
        yield from (sparse(tokens) for tokens in self.prompts)
        yield Part("step", lambda flusher: step(case, self.shape, self.method, rounds=7, flusher=flusher))
        yield Part("offload", lambda flusher: offload(case, steps=100, flusher=flusher))
        yield Part("build", lambda flusher: build(case, self.shape, self.method, rounds=5, flusher=flusher))
        yield from (layer(replace(case, tokens=tokens)) for tokens in self.lengths)


class Outcome(NamedTuple):
    """What came of a measurement: results, or why there are none."""

    name: str
    results: list[Result]
    failure: str = ""


def run(plan: Plan, directory: Path | None, report: Callable[[Outcome], object]) -> list[Outcome]:
    """Measure part after part; one that fails is reported, and the others go on.

    Args:
        directory: where each part's rows are written as soon as they are there.
        report: called after each part.
    """
    flusher = CacheFlusher(device=plan.case.device)
    ends, outcomes = time.monotonic() + plan.seconds, []
    for part in plan.parts():
        if time.monotonic() > ends:
            outcome = Outcome(part.name, [], f"not begun: {plan.seconds:.0f} s are over")
        else:
            outcome = _measured(part, plan, flusher, directory)
        outcomes.append(outcome)
        report(outcome)
    return outcomes


def _measured(part: Part, plan: Plan, flusher: CacheFlusher, directory: Path | None) -> Outcome:
    try:
        results = part.measure(flusher)
    except Exception as error:
        # Memory may be short, or a kernel wrong: the other measurements are kept.
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        return Outcome(part.name, [], f"{type(error).__name__}: {error} ({place})")
    finally:
        if plan.case.device != "cpu":
            torch.cuda.empty_cache()
    if directory is not None:
        known = conditions(f"keyhole bench gpu: {part.name}", results, flusher, plan.rounds)
        write_rows(directory / f"{part.name}.json", [row for each in results for row in each.rows], known)
    return Outcome(part.name, results)
