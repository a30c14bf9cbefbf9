"""LongBench v2 (Bai et al. 2024): multiple choice, reported by difficulty and length."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from keyhole.evaluation.benchmarks.base import Benchmark, Options, Sample, Turn
from keyhole.evaluation.benchmarks.files import SUFFIXES, Record, read, records
from keyhole.evaluation.benchmarks.templates import note

_TASK, _PROMPT, _LIMIT, _LETTERS = "choice", "0shot.txt", 128, "ABCD"
_OWN_PROMPT = (
    "$DOC$\n\nAnswer from the text above.\n$Q$\n(A) $C_A$\n(B) $C_B$\n(C) $C_C$\n(D) $C_D$\n"
    'Write "The correct answer is (X)", with the letter of one choice for X.'
)
_SAID = re.compile(r"The correct answer is \(([A-D])\)")
_SAID_PLAINLY = re.compile(r"The correct answer is ([A-D])")


class LongBench2(Benchmark):
    """Records have `_id`, `context`, `question`, `choice_A` to `D`, `answer`, `difficulty` and `length`."""

    name = "longbench-v2"
    paper = "Bai et al. 2024, arXiv 2412.15204"

    def __init__(self, data: Path | None, options: Options) -> None:
        super().__init__(data, options)
        path = next(iter(sorted(self.folder.rglob(_PROMPT))), None)
        self._prompt = _OWN_PROMPT if path is None else read(path)
        if path is None:
            self.notes.append(note("LongBench v2", f"prompts/{_PROMPT}"))

    @cached_property
    def _file(self) -> Path:
        found = [path for name in ("data", "train", "longbench_v2") for path in self._named(name)]
        if not found:
            raise ValueError(
                f"there is no file of LongBench v2 in {str(self.folder)!r}; it is data.json, a list"
            )
        return found[0]

    def _named(self, name: str) -> Iterable[Path]:
        return (
            self.folder / f"{name}{suffix}"
            for suffix in SUFFIXES
            if (self.folder / f"{name}{suffix}").is_file()
        )

    def tasks(self) -> list[str]:
        return [_TASK] if self._file else []

    def samples(self, task: str) -> Iterable[Sample]:
        for number, record in enumerate(records(self._file)):
            if record.text("answer") not in tuple(_LETTERS):
                raise ValueError(f"{record.place}: the answer {record['answer']!r} is not one of A, B, C, D")
            yield Sample(
                task=task,
                id=str(record.get("_id", number)),
                prompt=self._filled(record),
                turns=(Turn(record.text("answer"), _LIMIT),),
                context=record.text("context"),
                cut=True,
                groups={name: record.text(name) for name in ("difficulty", "length")},
            )

    def _filled(self, record: Record) -> str:
        prompt = self._prompt
        marks = {"$DOC$": "context", "$Q$": "question", **{f"$C_{x}$": f"choice_{x}" for x in _LETTERS}}
        # The document last: it may contain marks.
        for mark, name in reversed(marks.items()):
            prompt = prompt.replace(mark, record.text(name).strip())
        return prompt

    def score(self, metric: str, reference: Any, answer: str) -> float:  # noqa: ARG002
        return float(chosen(answer) == reference)


def chosen(answer: str) -> str | None:
    """The letter an answer names in the form it was asked for; None if it names none."""
    text = answer.replace("*", "")
    found = _SAID.search(text) or _SAID_PLAINLY.search(text)
    return found.group(1) if found else None
