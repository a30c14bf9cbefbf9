"""BABILong (Kuratov et al. 2024): the facts of bAbI's twenty tasks hidden in books."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from keyhole.evaluation.benchmarks.base import Benchmark, Options, Sample, Turn
from keyhole.evaluation.benchmarks.files import literals, records, task_files, task_of
from keyhole.evaluation.benchmarks.templates import note

_PLACES = "bathroom bedroom garden hallway kitchen office"
_ANSWERS = {
    **dict.fromkeys(("qa1", "qa2", "qa3", "qa4", "qa11", "qa12", "qa13"), _PLACES),
    "qa5": "bill fred jeff mary apple football milk",
    **dict.fromkeys(("qa6", "qa9", "qa17", "qa18"), "no yes"),
    "qa7": "none one three two",
    "qa8": "apple football milk nothing",
    "qa10": "maybe no yes",
    "qa14": "bedroom cinema kitchen office park school",
    "qa15": "cat mouse sheep wolf",
    "qa16": "gray green white yellow",
    "qa19": "e,e e,n e,s n,e n,n n,w s,e s,s s,w w,n w,s w,w",
    "qa20": "bedroom bored garden hungry kitchen thirsty tired",
}
LABELS = {f"qa{n}": frozenset(_ANSWERS[f"qa{n}"].split()) for n in range(1, 21)}
_LIMIT = 20  # tokens of an answer, which is a word or a short sentence
_PROMPTS, _SET = "prompts.py", "DEFAULT_PROMPTS"
_PARTS = ("instruction", "examples", "post_prompt")
_OWN = "The text below contains facts among other sentences. Answer by the facts, in one word: {labels}."


class BabiLong(Benchmark):
    """Records have `input`, `question` and `target`; files are of a task and length, as qa1/4k.json."""

    name = "babilong"
    paper = "Kuratov et al. 2024, arXiv 2406.10149"

    def __init__(self, data: Path | None, options: Options) -> None:
        super().__init__(data, options)
        found = literals(self.folder, _PROMPTS) or {}
        self._prompts: dict[str, dict[str, str]] | None = found.get(_SET)
        if self._prompts is None:
            self.notes.append(note("BABILong", _PROMPTS))

    @cached_property
    def _files(self) -> dict[str, Path]:
        return task_files(self.folder, LABELS)

    def tasks(self) -> list[str]:
        if not self._files:
            raise ValueError(
                f"there are no files of BABILong in {str(self.folder)!r}; they are LENGTH/qaN.jsonl, "
                "qaN/LENGTH.json or qaN.jsonl, N from 1 to 20"
            )
        return list(self._files)

    def samples(self, task: str) -> Iterable[Sample]:
        ahead = self._ahead(task_of(task))
        for number, record in enumerate(records(self._files[task])):
            context, question = record.text("input").strip(), record.text("question")
            prompt = f"{ahead}\n\n<context>\n{context}\n</context>\n\nQuestion: {question}"
            reference = {"target": record.text("target"), "question": question}
            yield Sample(
                task=task,
                id=str(record.get("id", number)),
                prompt=prompt.strip(),
                turns=(Turn(reference, _LIMIT),),
                context=context,
            )

    def _ahead(self, task: str) -> str:
        if self._prompts is None:
            return _OWN.format(labels=", ".join(sorted(LABELS[task])))
        if task not in self._prompts:
            raise ValueError(f"{_PROMPTS} has no prompt for {task}; there are: {', '.join(self._prompts)}")
        return "\n\n".join(self._prompts[task].get(part, "") for part in _PARTS)

    def score(self, metric: str, reference: Any, answer: str) -> float:
        return named_alone(LABELS[task_of(metric)], reference["target"], reference["question"], answer)


def named_alone(labels: frozenset[str], target: str, question: str, answer: str) -> float:
    """Whether the answer's first sentence names the target and no other label.

    Labels that the question contains do not count. A target of several, `apple,milk`, wants all of them.
    """
    said = answer.lower().split(".")[0].split("<context>")[0].split("<example>")[0]
    named = {label for label in labels if label in said and label not in question.lower()}
    # Directions are two letters and a comma, and one label.
    several = "," in target and len(target) > len("n,n")
    return float(named == (set(target.lower().split(",")) if several else {target.lower()}))
