"""RULER (Hsieh et al. 2024): needles, chains of variables, word counts and questions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from keyhole.evaluation.benchmarks.base import Benchmark, Sample, Turn
from keyhole.evaluation.benchmarks.files import records, task_files, task_of

# Tokens that an answer may take, as the generator leaves room for.
LIMITS = {
    **dict.fromkeys(
        (
            *("niah_single_1", "niah_single_2", "niah_single_3"),
            *("niah_multikey_1", "niah_multikey_2", "niah_multikey_3", "niah_multivalue", "niah_multiquery"),
        ),
        128,
    ),
    **{"vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 32},
}
_CONTROL = re.compile(r"[\x00-\x1f]")


class Ruler(Benchmark):
    """Records have `index`, `input`, `outputs`, and `answer_prefix` where the generator keeps it apart.

    The generator writes complete prompts, chat form included if it was asked for it; so no template is added.
    """

    name = "ruler"
    paper = "Hsieh et al. 2024, arXiv 2404.06654"

    @cached_property
    def _files(self) -> dict[str, Path]:
        return task_files(self.folder, LIMITS)

    def tasks(self) -> list[str]:
        if not self._files:
            raise ValueError(
                f"there are no files of RULER in {str(self.folder)!r}; its generator writes "
                "TASK/validation.jsonl for the tasks " + ", ".join(LIMITS)
            )
        return list(self._files)

    def samples(self, task: str) -> Iterable[Sample]:
        limit = LIMITS[task_of(task)]
        for record in records(self._files[task]):
            yield Sample(
                task=task,
                id=str(record["index"]),
                prompt=record.text("input"),
                turns=(Turn(record.texts("outputs"), limit),),
                chat=False,
                reply=str(record.get("answer_prefix", "")),
            )

    def score(self, metric: str, reference: Any, answer: str) -> float:
        return _any(reference, answer) if task_of(metric).startswith("qa") else share_found(reference, answer)


def share_found(references: list[str], answer: str) -> float:
    """The share of the references that the answer contains, in any case."""
    text = _cleaned(answer)
    return sum(reference.lower() in text for reference in references) / len(references)


def _any(references: list[str], answer: str) -> float:
    """Whether the answer contains one of the references, in any case."""
    text = _cleaned(answer)
    return float(any(reference.lower() in text for reference in references))


def _cleaned(answer: str) -> str:
    return _CONTROL.sub("\n", answer.strip()).strip().lower()
