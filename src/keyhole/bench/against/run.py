"""One run: from what was asked to figures with their conditions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from keyhole.bench.against.engine import Entrant, Settings
from keyhole.bench.against.engines import entrant, read_engine
from keyhole.bench.against.figures import Measured
from keyhole.bench.against.file_facts import FileFacts, file_facts
from keyhole.bench.against.huggingface import HuggingFace
from keyhole.bench.against.measure import Plan, Report, measure, workers
from keyhole.bench.against.tables import noise
from keyhole.bench.against.worker import Worker, has_peaks
from keyhole.bench.case import check_dtype
from keyhole.tuning.machine import describe, require_memory

LENGTHS = (512, 2048, 8064, 32_768, 131_072)


@dataclass(frozen=True)
class Task:
    """What to measure.

    Attributes:
        file: read by all engines.
        text: its first tokens are the prompt; None where weights are random, and ids are too.
        engines: to compare with, as `entrant` reads them.
        methods: of Keyhole, each an engine of its own.
        dtype: of Keyhole's weights, where `loading` does not say otherwise.
        loading: further options of `load_model`.
        lengths: tokens in the cache; None is all of `LENGTHS` within the model's range.
        prompt: lengths up to this are computed from the prompt.
        rounds: turns of each engine at each length.
        steps: that are counted in a turn.
    """

    file: Path
    text: str | None
    engines: tuple[str, ...]
    methods: tuple[str, ...]
    dtype: str
    loading: dict[str, Any]
    lengths: tuple[int, ...] | None
    prompt: int
    rounds: int
    steps: int
    threads: int


def run(task: Task, report: Report) -> Measured:
    """Measure a task.

    Raises:
        ValueError: an unknown dtype, a length beyond the model's range, a text that is too short, or too
            little memory.
        EngineError: an engine raised an error.
        CheckFailedError: two engines do not compute the same model.
    """
    check_dtype(task.dtype)
    if not has_peaks():
        raise ValueError("this system does not report the peak memory of a process; run it on Linux")
    facts, blank = file_facts(task.file), Plan((), [], task.rounds, task.steps)
    lengths = _lengths(task, facts, blank.room)
    ours = {name: one for name, one in zip(map(_named, task.methods), _ours(task), strict=True)}
    settings = Settings(task.file, task.threads)
    entrants = [*ours.values(), *(entrant(spec, settings) for spec in task.engines)]
    _check(task, facts, lengths[-1], blank.room)
    report("loading", 0, len(lengths))
    with workers(entrants) as engines:
        plan = blank._replace(lengths=lengths, ids=_prompt(task, engines[0], lengths))
        found = measure(engines, plan, report, ours=frozenset(ours))
    return Measured(found.figures, _conditions(task, found.about, [*found.notes, *noise(found.figures)]))


def _named(method: str) -> str:
    return f"keyhole {method}"


def _ours(task: Task) -> list[Entrant]:
    settings = Settings(task.file, task.threads)
    make = partial(HuggingFace, settings, dtype=task.dtype, loading=task.loading)
    return [Entrant(_named(method), partial(make, method=method)) for method in task.methods]


def _check(task: Task, facts: FileFacts, length: int, room: int) -> None:
    """Raise ValueError where an engine cannot hold `length` tokens, or memory all engines' together."""
    engines = [(spec, *read_engine(spec)) for spec in task.engines]
    for spec, name, _ in engines:
        if name == "vllm" and length > task.prompt:
            raise ValueError(
                f"{spec} takes no synthetic tokens; give --prompt {length}, or shorter --lengths"
            )
    kinds = [task.dtype for _ in task.methods]
    kinds += [options.get("kv") or options["dtype"] for _, _, options in engines]
    needed = sum(facts.cache_bytes(length + room, kind) for kind in kinds)
    require_memory(f"{len(kinds)} engines, each with {length:,} tokens,", needed)


def _lengths(task: Task, facts: FileFacts, room: int) -> tuple[int, ...]:
    most = facts.positions - room
    usual = tuple(length for length in LENGTHS if length <= most)
    if task.lengths is None and usual:
        return usual
    for length in task.lengths or LENGTHS[:1]:
        if not 2 <= length <= most:
            raise ValueError(
                f"length {length} is out of range; give 2 to {most} tokens, as the model has a range of "
                f"{facts.positions} and {room} are generated"
            )
    return tuple(sorted(set(task.lengths or ())))


def _prompt(task: Task, keyhole: Worker, lengths: Sequence[int]) -> list[int]:
    """Ids for the longest length that is computed."""
    tokens = max((length for length in lengths if length <= task.prompt), default=0)
    if tokens and task.text is not None:
        return keyhole.call("encode", task.text, tokens)
    return np.random.default_rng(0).integers(1, 256, tokens).tolist()


def _conditions(task: Task, about: dict[str, str], notes: list[str]) -> dict[str, Any]:
    fairness = (
        f"medians of {task.rounds} rounds in which all take turns, each with {task.steps} steps behind one "
        "that is not counted; every engine stays in a process of its own and reads the same file; a prompt's "
        "time is until the first token and includes building the index; peak is that of the process while it "
        "computed prompt and steps"
    )
    synthetic = (
        "at lengths marked synthetic the tokens in the cache were not computed: Keyhole and transformers "
        "hold drawn keys and values, llama.cpp a computed block at all positions"
    )
    return describe() | {
        "date": date.today().isoformat(),
        "file": task.file.name,
        "random_weights": task.text is None,
        "dtype": task.dtype,
        "loading": task.loading,
        "engines": about,
        "notes": [fairness, synthetic, *notes],
    }
