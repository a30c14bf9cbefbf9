"""SCBench (Li et al. 2024): several questions on one context, as a conversation or one by one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from keyhole.evaluation.benchmarks import infinitebench_scores as scores
from keyhole.evaluation.benchmarks.base import Benchmark, Options, Sample, Turn
from keyhole.evaluation.benchmarks.files import Record, literals, records, task_files, task_of
from keyhole.evaluation.benchmarks.ruler import share_found
from keyhole.evaluation.benchmarks.templates import fill, note
from keyhole.evaluation.benchmarks.text_metrics import character_f1, needed, rouge_l_sum

_CODE, _PROMPTS, _SET = "scbench_repoqa", "eval_utils.py", "multiturn_templates"
# Tokens that an answer may take.
_LIMITS = {
    **dict.fromkeys(("scbench_choice_eng", "scbench_qa_eng", "scbench_qa_chn"), 40),
    **dict.fromkeys(("scbench_kv", "scbench_kv_hard", "scbench_hashhop", "scbench_prefix_suffix"), 150),
    **{"scbench_mf": 5, "scbench_passkey": 15, "scbench_summary": 200, "scbench_vt": 30},
    **{"scbench_many_shot": 10, "scbench_summary_with_needles": 0},
}
_MIXED = {"scbench_summary": 800, "scbench_passkey": 15}  # of the turns of scbench_summary_with_needles
_CHOICE = "Question: {question}\nA. {OPTION_A}\nB. {OPTION_B}\nC. {OPTION_C}\nD. {OPTION_D}\n"
_QUESTIONS = {
    "scbench_choice_eng": _CHOICE + "The right letter is",
    "scbench_qa_eng": "Question: {question}\nAnswer:",
    "scbench_qa_chn": "问题：{question}\n答案：",
}
_SPLIT = "{context}"


def _found(reference: Any, answer: str) -> float:
    return float(scores.texts(reference)[0] in answer)


def _any_case(reference: Any, answer: str) -> float:
    return float(any(each.upper() in answer.strip().upper() for each in scores.texts(reference)))


_SCORES: dict[str, Callable[[Any, str], float]] = {
    **dict.fromkeys(("scbench_kv", "scbench_kv_hard", "scbench_hashhop", "scbench_prefix_suffix"), _found),
    **dict.fromkeys(("scbench_qa_eng", "scbench_many_shot"), _any_case),
    "scbench_choice_eng": scores.choice,
    "scbench_qa_chn": scores.best_of(character_f1),
    "scbench_mf": scores.first_number,
    "scbench_passkey": scores.first_digits,
    "scbench_summary": scores.best_of(rouge_l_sum),
    "scbench_vt": lambda reference, answer: round(share_found(scores.texts(reference), answer), 2),
}


class ScBench(Benchmark):
    """Records have `context` and `multi_turns`, each with `input` and `answer`, some `options` or `task`.

    In a conversation the answers to earlier turns are the reference answers, as in the published runs.
    """

    name = "scbench"
    paper = "Li et al. 2024, arXiv 2412.10319"

    def __init__(self, data: Path | None, options: Options) -> None:
        super().__init__(data, options)
        self._prompts: dict[str, str] = (literals(self.folder, _PROMPTS) or {}).get(_SET, {})
        if not self._prompts:
            self.notes.append(note("SCBench", _PROMPTS))

    @cached_property
    def _files(self) -> dict[str, Path]:
        return task_files(self.folder, [*_LIMITS, _CODE, _CODE + "_and_kv"])

    def tasks(self) -> list[str]:
        if not self._files:
            raise ValueError(
                f"there are no files of SCBench in {str(self.folder)!r}; they are TASK.jsonl for "
                + ", ".join(_LIMITS)
            )
        return list(self._files)

    def check(self, task: str) -> None:
        if task_of(task).startswith(_CODE):
            others = ",".join(each for each in self._files if not task_of(each).startswith(_CODE))
            raise ValueError(
                f"{task} is scored by parsing six programming languages, which is not supported; "
                f"leave it out with --tasks {others}"
            )
        if "summary" in task_of(task):
            needed("rouge_score")

    def samples(self, task: str) -> Iterable[Sample]:
        name = task_of(task)
        head, between = self._template(name)
        for number, record in enumerate(records(self._files[task])):
            context = record.text("context")
            turns = _turns(record)
            questions = [fill(between, _fields(name, turn), turn.place) for turn in turns]
            prompt = fill(head, {"context": context, **_fields(name, turns[0])}, record.place)
            asked = _one_by_one if self.options.requests else _conversation
            prompt, made = asked(name, prompt, questions, turns)
            yield Sample(
                task=task,
                id=str(record.get("id", number)),
                prompt=prompt,
                turns=made,
                context=context,
                cut=True,
            )

    def _template(self, task: str) -> tuple[str, str]:
        """What comes up to the context, and what behind it asks a question."""
        template = self._prompts.get(task) or f"{_SPLIT}\n\n{_QUESTIONS.get(task, '{input}')}"
        if template.count(_SPLIT) != 1:
            raise ValueError(f"the prompt of {task} in {_PROMPTS} does not contain {_SPLIT} once")
        head, between = template.split(_SPLIT)
        blank = len(between) - len(between.lstrip())
        return head + _SPLIT + between[:blank], between[blank:]

    def score(self, metric: str, reference: Any, answer: str) -> float:
        return _SCORES[task_of(metric)](reference, answer)


def _turns(record: Record) -> list[Record]:
    entries = record["multi_turns"]
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{record.place}: multi_turns must be a list of at least one turn")
    return [Record(entry, f"{record.place}, turn {number}") for number, entry in enumerate(entries, 1)]


def _fields(task: str, turn: Record) -> dict[str, str]:
    question = turn.text("input")
    fields = {"input": question, "question": question}
    fields |= {
        f"OPTION_{letter}": each for letter, each in zip("ABCD", turn.get("options") or (), strict=False)
    }
    if task == "scbench_mf":
        found = re.search("The .+ is", question)
        fields["prefix"] = f"What is {found.group().lower().removesuffix(' is')}?" if found else ""
    return fields


def _judged(task: str, turn: Record, **asked: Any) -> Turn:
    """A turn with its reference; of a choice the option and its letter."""
    answer, known = turn["answer"], _SCORES if _LIMITS[task] else _MIXED
    metric = str(turn.get("task", task if task in known else ""))
    if metric not in known:
        raise ValueError(
            f"{turn.place}: the field 'task' is {metric!r}; it must be one of {', '.join(known)}"
        )
    if options := turn.get("options"):
        if answer not in options:
            raise ValueError(f"{turn.place}: the answer {answer!r:.60} is not one of the options")
        answer = [answer, "ABCD"[options.index(answer)]]
    return Turn(answer, _LIMITS[task] or _MIXED[metric], metric=metric, **asked)


def _one_by_one(
    task: str, prompt: str, questions: list[str], turns: list[Record]
) -> tuple[str, tuple[Turn, ...]]:
    made = (_judged(task, turn, tail=question) for turn, question in zip(turns, questions, strict=True))
    return prompt, tuple(made)


def _conversation(
    task: str, prompt: str, questions: list[str], turns: list[Record]
) -> tuple[str, tuple[Turn, ...]]:
    said = [", ".join(scores.texts(turn["answer"])) for turn in turns]
    pairs = ((pair,) for pair in zip(said, questions[1:], strict=False))
    histories: list[tuple[tuple[str, str], ...]] = list(accumulate(pairs, initial=()))
    made = (_judged(task, turn, history=past) for turn, past in zip(turns, histories, strict=True))
    return prompt + questions[0], tuple(made)
