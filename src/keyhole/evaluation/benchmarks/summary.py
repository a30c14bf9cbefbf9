"""Scores by method and task, and by the partitions a benchmark reports."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from keyhole.evaluation.benchmarks.rowfile import Row

MEAN, ALL = "mean", "all"


@dataclass(frozen=True)
class Line:
    """One method on one task, or on a partition of it, or the mean over the tasks.

    Attributes:
        task: a task, or `mean`, which weighs tasks equally.
        group: `all`, or a partition such as `difficulty=hard`.
        answers: answers that were scored.
        refused: questions that were not asked, beyond the model's range.
        cut: answers to a prompt that was cut in the middle.
        score: mean of the answers' scores, 0 to 100; None without answers.
        read_fraction: tokens that decode steps read, of those in the context; None without decode steps.
        bytes_read_per_token: of keys, values and index by one generated token, in all layers.
        bytes_device: bytes held after an answer on the model's device; `host` and `disk` likewise.
        prompt_tokens: of a prompt, in the mean.
    """

    method: str
    task: str
    group: str
    answers: int
    refused: int
    cut: int
    score: float | None
    read_fraction: float | None
    bytes_read_per_token: float | None
    bytes_device: float
    bytes_host: float
    bytes_disk: float
    prompt_tokens: float
    prompt_seconds: float
    decode_ms: float | None

    def record(self) -> dict[str, Any]:
        """The line as JSON files hold it."""
        return asdict(self)


def summarise(rows: Sequence[Row]) -> list[Line]:
    """For each method its tasks, each with its partitions, and the mean over several tasks."""
    lines = []
    for method in dict.fromkeys(row.method for row in rows):
        mine = [row for row in rows if row.method == method]
        tasks = list(dict.fromkeys(row.task for row in mine))
        whole = []
        for task in tasks:
            of_task = [row for row in mine if row.task == task]
            whole.append(_line(method, task, ALL, of_task))
            lines += [whole[-1], *_partitions(method, task, of_task)]
        if len(tasks) > 1:
            lines.append(_mean(_line(method, MEAN, ALL, mine), whole))
    return lines


def _partitions(method: str, task: str, rows: Sequence[Row]) -> Iterator[Line]:
    names = dict.fromkeys(name for row in rows for name in row.groups)
    for name in names:
        for value in sorted({row.groups[name] for row in rows if name in row.groups}, key=_order):
            chosen = [row for row in rows if row.groups.get(name) == value]
            yield _line(method, task, f"{name}={value}", chosen)


def _order(value: str) -> tuple[float, str]:
    return (float(value), "") if value.isdecimal() else (float("inf"), value)


def _line(method: str, task: str, group: str, rows: Sequence[Row]) -> Line:
    answered = [row for row in rows if row.score is not None]
    tokens = sum(row.new_tokens for row in answered)
    context = sum(row.tokens_in_context for row in answered)
    return Line(
        method=method,
        task=task,
        group=group,
        answers=len(answered),
        refused=len(rows) - len(answered),
        cut=sum(row.cut_tokens > 0 for row in answered),
        score=100 * _average(row.score or 0.0 for row in answered) if answered else None,
        read_fraction=sum(row.tokens_read for row in answered) / context if context else None,
        bytes_read_per_token=sum(row.bytes_read for row in answered) / tokens if tokens else None,
        bytes_device=_average(row.bytes_device for row in answered),
        bytes_host=_average(row.bytes_host for row in answered),
        bytes_disk=_average(row.bytes_disk for row in answered),
        prompt_tokens=_average(row.prompt_tokens for row in answered),
        prompt_seconds=_average(row.prompt_seconds for row in answered),
        decode_ms=1000 * sum(row.seconds for row in answered) / tokens if tokens else None,
    )


def _mean(line: Line, tasks: Sequence[Line]) -> Line:
    scores = [task.score for task in tasks if task.score is not None]
    return Line(**{**asdict(line), "score": _average(scores) if scores else None})


def _average(numbers: Iterable[float]) -> float:
    found = list(numbers)
    return sum(found) / len(found) if found else 0.0
