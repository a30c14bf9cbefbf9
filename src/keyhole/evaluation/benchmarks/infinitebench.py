"""InfiniteBench (Zhang et al. 2024): twelve tasks on contexts beyond 100,000 tokens."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from keyhole.evaluation.benchmarks.base import Benchmark, Options, Sample, Turn
from keyhole.evaluation.benchmarks.files import Record, literals, records, task_files, task_of
from keyhole.evaluation.benchmarks.infinitebench_scores import SCORES
from keyhole.evaluation.benchmarks.templates import fill, note
from keyhole.evaluation.benchmarks.text_metrics import needed

# Tokens that an answer may take.
_LIMITS = {
    **{"passkey": 6, "number_string": 12, "kv_retrieval": 50, "longbook_sum_eng": 1200},
    **dict.fromkeys(("longbook_choice_eng", "longbook_qa_eng", "longbook_qa_chn", "longdialogue_qa_eng"), 40),
    **{"math_find": 3, "math_calc": 30000, "code_run": 5, "code_debug": 5},
}
_PROMPTS, _SET = "prompt.py", "yarn_mistral_templates"  # the prompts of models that continue text
_OPTIONS = "A. {OPTION_A}\nB. {OPTION_B}\nC. {OPTION_C}\nD. {OPTION_D}\n"
_OWN_PROMPTS = {
    "passkey": "{context}\n{input}\nThe pass key is",
    "number_string": "{context}\n{input}\nThe sequence of digits is",
    "kv_retrieval": "{context}\n{input}",
    "longbook_sum_eng": "{context}\n\nA summary of this book:",
    "longbook_choice_eng": "{context}\n\n{question}\n" + _OPTIONS + "The right letter is",
    "longbook_qa_eng": "{context}\n\nAnswer briefly. {question}\nAnswer:",
    "longbook_qa_chn": "{context}\n\n请简短作答。{question}\n答案：",
    "longdialogue_qa_eng": "{context}\n\nOne name above is hidden by $$MASK$$. That name is",
    "math_find": "{prefix}\n{context}\n{input}",
    "math_calc": "The value after each operation, from the left. 1 + 3 + 4: [1, 4, 8]\n{context}:",
    "code_run": "{context}\n\nThe value of {func_call} is",
    "code_debug": "{context}\n\nOne of these functions contains an error that makes it crash:\n"
    + _OPTIONS
    + "The right option is:",
}


class InfiniteBench(Benchmark):
    """Records have `id`, `context`, `input`, `answer`, and `options` where there is a choice."""

    name = "infinitebench"
    paper = "Zhang et al. 2024, arXiv 2402.13718"

    def __init__(self, data: Path | None, options: Options) -> None:
        super().__init__(data, options)
        self._prompts: dict[str, str] = (literals(self.folder, _PROMPTS) or {}).get(_SET, _OWN_PROMPTS)
        if self._prompts is _OWN_PROMPTS:
            self.notes.append(note("InfiniteBench", _PROMPTS))

    @cached_property
    def _files(self) -> dict[str, Path]:
        return task_files(self.folder, SCORES)

    def tasks(self) -> list[str]:
        if not self._files:
            raise ValueError(
                f"there are no files of InfiniteBench in {str(self.folder)!r}; they are TASK.jsonl for "
                + ", ".join(SCORES)
            )
        return list(self._files)

    def check(self, task: str) -> None:
        if task_of(task) == "longbook_sum_eng":
            needed("rouge_score")

    def samples(self, task: str) -> Iterable[Sample]:
        name = task_of(task)
        for number, record in enumerate(records(self._files[task])):
            context = record.text("content" if "content" in record else "context")
            yield Sample(
                task=task,
                id=str(record.get("id", number)),
                prompt=fill(self._prompts[name], _fields(name, record, context), record.place),
                turns=(Turn(_reference(record), _LIMITS[name]),),
                context=context,
                chat=False,
                cut=True,
            )

    def score(self, metric: str, reference: Any, answer: str) -> float:
        return SCORES[task_of(metric)](reference, answer)


def _fields(task: str, record: Record, context: str) -> dict[str, str]:
    question = str(record.get("input", ""))
    fields = {"context": context, "input": question, "question": question}
    if record.get("options"):
        fields |= {f"OPTION_{letter}": each for letter, each in zip("ABCD", record["options"], strict=False)}
    if task == "code_run":
        call = _found(r"func_[0-9]+\(-?[0-9]+\)", question, record)
        fields |= {"func_call": call, "func": call.split("(")[0]}
    if task == "math_find":
        wanted = _found("The .+ of", question, record).lower().removesuffix(" of")
        fields["prefix"] = f"What is {wanted} in the following list?"
    return fields


def _found(pattern: str, text: str, record: Record) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"{record.place}: the input {text!r:.60} does not have the form {pattern!r}")
    return found.group()


def _reference(record: Record) -> Any:
    """The answer; of a choice the option and its letter."""
    answer, choices = record["answer"], record.get("options")
    if not choices:
        return answer
    named = answer if isinstance(answer, list) else [answer]
    if len(named) == 2 and named[1] in tuple("ABCD"):
        return named
    if named[0] not in choices:
        raise ValueError(f"{record.place}: the answer {named[0]!r:.60} is not one of the options")
    return [named[0], "ABCD"[choices.index(named[0])]]
