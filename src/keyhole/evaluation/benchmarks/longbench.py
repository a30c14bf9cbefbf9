"""LongBench (Bai et al. 2023): 21 tasks of question answering, summaries, examples, retrieval and code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from keyhole.evaluation.benchmarks.base import Benchmark, Options, Sample, Turn
from keyhole.evaluation.benchmarks.files import Record, records, table, task_files, task_of
from keyhole.evaluation.benchmarks.longbench_scores import PACKAGES, SCORES, Judged
from keyhole.evaluation.benchmarks.templates import fill, note
from keyhole.evaluation.benchmarks.text_metrics import needed

_PROMPTS, _LIMITS = "dataset2prompt.json", "dataset2maxlen.json"
_EVEN = "_e"  # LongBench-E, whose lengths are spread evenly
# Tokens that an answer may take where `dataset2maxlen.json` is missing.
_OWN_LIMITS = {
    **dict.fromkeys(("hotpotqa", "2wikimqa", "musique", "triviaqa"), 32),
    **dict.fromkeys(("passage_count", "passage_retrieval_en", "passage_retrieval_zh"), 32),
    **dict.fromkeys(("multifieldqa_en", "multifieldqa_zh", "trec", "lsht", "lcc", "repobench-p"), 64),
    **dict.fromkeys(("narrativeqa", "qasper", "dureader", "samsum"), 128),
    **dict.fromkeys(("gov_report", "qmsum", "multi_news", "vcsum"), 512),
}
# Asked without a chat template: the prompt is examples, or code, to go on with.
_CONTINUED = frozenset({"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"})
_OWN_PROMPTS = {
    **dict.fromkeys(_OWN_LIMITS, "{context}\n\nAnswer from the text above, briefly: {input}\nAnswer:"),
    **dict.fromkeys(
        ("multifieldqa_zh", "dureader"), "{context}\n\n请根据上文简短作答。\n问题：{input}\n回答："
    ),
    **dict.fromkeys(("gov_report", "multi_news"), "{context}\n\nSummarise the text above.\nSummary:"),
    "vcsum": "{context}\n\n请总结上文。\n总结：",
    **dict.fromkeys(("trec", "lsht"), "{context}\n{input}"),
    **dict.fromkeys(("triviaqa", "samsum"), "{context}\n\n{input}"),
    "passage_count": "{context}\n\nSome paragraphs above are repeated. The number of different ones is",
    "passage_retrieval_en": (
        "{context}\n\nA summary of one paragraph above: {input}\n"
        'Name that paragraph in the form "Paragraph 1".\nAnswer:'
    ),
    "passage_retrieval_zh": ("{context}\n\n以上一段的摘要：{input}\n请按“段落1”的形式作答。\n答案："),
    **dict.fromkeys(("lcc", "repobench-p"), "{context}{input}"),
}


class LongBench(Benchmark):
    """Records have `input`, `context`, `answers`, `all_classes`, `length` and `_id`, among others."""

    name = "longbench"
    paper = "Bai et al. 2023, arXiv 2308.14508"

    def __init__(self, data: Path | None, options: Options) -> None:
        super().__init__(data, options)
        prompts, limits = (table(self.folder, name) for name in (_PROMPTS, _LIMITS))
        self._prompts: Mapping[str, Any] = prompts or _OWN_PROMPTS
        self._limits: Mapping[str, Any] = limits or _OWN_LIMITS
        if prompts is None:
            self.notes.append(note("LongBench", _PROMPTS))

    @cached_property
    def _files(self) -> dict[str, Path]:
        return task_files(self.folder, [*SCORES, *(name + _EVEN for name in SCORES)])

    def tasks(self) -> list[str]:
        if not self._files:
            raise ValueError(
                f"there are no files of LongBench in {str(self.folder)!r}; they are DATASET.jsonl for "
                + ", ".join(SCORES)
            )
        return list(self._files)

    def check(self, task: str) -> None:
        for package in PACKAGES.get(_dataset(task), ()):
            needed(package)

    def samples(self, task: str) -> Iterable[Sample]:
        name = _dataset(task)
        if name not in self._prompts or name not in self._limits:
            raise ValueError(f"{_PROMPTS} or {_LIMITS} has no entry {name!r}; give the files of one release")
        for number, record in enumerate(records(self._files[task])):
            fields = {"context": record.text("context"), "input": record.text("input")}
            judged = Judged(record.texts("answers"), list(record.get("all_classes") or []))
            yield Sample(
                task=task,
                id=str(record.get("_id", number)),
                prompt=fill(str(self._prompts[name]), fields, record.place),
                turns=(Turn(judged._asdict(), int(self._limits[name])),),
                context=fields["context"],
                chat=name not in _CONTINUED,
                cut=True,
                groups=_length(record) if task.endswith(_EVEN) else {},
            )

    def score(self, metric: str, reference: Any, answer: str) -> float:
        return SCORES[_dataset(metric)](Judged(**reference), answer)


def _dataset(task: str) -> str:
    return task_of(task).removesuffix(_EVEN)


def _length(record: Record) -> dict[str, str]:
    words = int(record["length"])
    return {"length": "0-4k" if words < 4000 else "4-8k" if words < 8000 else "8k+"}
