"""NeedleBench (Li et al. 2024): one needle, or several at once, over lengths and depths, in two languages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keyhole.evaluation.benchmarks.base import Benchmark, Options, Sample, Turn
from keyhole.evaluation.benchmarks.files import Record, records
from keyhole.evaluation.benchmarks.grid import hide
from keyhole.evaluation.benchmarks.text_metrics import edit_distance

_LIMITS = {"single": 100, "multi": 300}
_LANGUAGES = {"en": "English", "zh": "Chinese"}
_PROMPTS = {
    "en": ("{}\n\nAnswer briefly, by the text above. {}", "\n"),
    "zh": ("{}\n\n请根据上文简短作答。{}", "\n"),
}
_NEEDLES, _NEAR = "needles.jsonl", 0.2  # the most that an answer without the keyword can score


class _Hidden(NamedTuple):
    needle: str
    question: str
    keyword: str


class NeedleBench(Benchmark):
    """`needles.jsonl` has `needle`, `retrieval_question`, `arg2` and `language`; other files have `text`.

    Files whose names begin with zh are Chinese. Prompts are made here, of so many tokens of the model's own
    tokenizer.
    """

    name = "needlebench"
    paper = "Li et al. 2024, arXiv 2407.11963"
    is_grid = True

    def __init__(self, data: Path | None, options: Options) -> None:
        super().__init__(data, options)
        self.notes.append(
            "the prompts are Keyhole's wording and lengths count the model's own tokens, so these scores are "
            "not comparable with published ones of NeedleBench"
        )

    @cached_property
    def _needles(self) -> dict[str, list[_Hidden]]:
        path = self.folder / _NEEDLES
        if not path.is_file():
            raise ValueError(f"there is no {_NEEDLES} of NeedleBench in {str(self.folder)!r}")
        known: dict[str, list[_Hidden]] = {short: [] for short in _LANGUAGES}
        for record in records(path):
            short = next((key for key, name in _LANGUAGES.items() if name == record.text("language")), None)
            if short is not None:
                known[short].append(_hidden(record))
        return known

    @cached_property
    def _haystacks(self) -> dict[str, str]:
        found: dict[str, list[str]] = {short: [] for short in _LANGUAGES}
        for path in sorted(self.folder.glob("*.jsonl")):
            if path.name != _NEEDLES and not path.name.startswith("multi_needle"):
                lines = (record.text("text") for record in records(path))
                found["zh" if path.name.startswith("zh") else "en"].extend(lines)
        return {short: "\n".join(lines) for short, lines in found.items()}

    def tasks(self) -> list[str]:
        usable = [each for each in _LANGUAGES if self._needles[each] and self._haystacks[each].strip()]
        if not usable:
            raise ValueError(
                f"there are no files of NeedleBench in {str(self.folder)!r}; they are {_NEEDLES} and "
                "files of JSON lines with `text`, such as PaulGrahamEssays.jsonl or zh_finance.jsonl"
            )
        return [f"{kind}_{language}" for language in usable for kind in _LIMITS]

    def samples(self, task: str) -> Iterable[Sample]:
        kind, language = task.split("_")
        options = self.options
        # Several needles are at all depths at once.
        depths = options.depths if kind == "single" else ("all",)
        for length, depth, repeat in product(options.lengths, depths, range(options.repeats)):
            places = list(options.depths) if depth == "all" else [int(depth)]
            rng = np.random.default_rng([options.seed, length, repeat, places[0]])
            yield self._sample(task, kind, language, rng, length, places, f"{depth}-{repeat}")

    def _sample(
        self,
        task: str,
        kind: str,
        language: str,
        rng: np.random.Generator,
        length: int,
        depths: list[int],
        name: str,
    ) -> Sample:
        assert self.options.tokenizer is not None
        known = self._needles[language]
        if len(depths) > len(known):
            raise ValueError(f"{len(depths)} depths need as many needles; {_NEEDLES} has {len(known)}")
        drawn = [known[index] for index in rng.choice(len(known), size=len(depths), replace=False)]
        form, between = _PROMPTS[language]
        question = between.join(each.question for each in drawn)
        needles = [f"\n{each.needle}\n" for each in drawn]
        context = hide(
            self.options.tokenizer,
            self._haystacks[language],
            needles,
            depths,
            length - _LIMITS[kind],
            lambda context: form.format(context, question),
        )
        return Sample(
            task=task,
            id=f"{length}-{name}",
            prompt=form.format(context, question),
            turns=(Turn([list(each) for each in drawn], _LIMITS[kind]),),
            groups={"length": str(length), **({"depth": str(depths[0])} if kind == "single" else {})},
        )

    def score(self, metric: str, reference: Any, answer: str) -> float:
        hidden = [_Hidden(*each) for each in reference]
        if metric.startswith("multi"):
            return sum(each.keyword in answer for each in hidden) / len(hidden)
        return found_or_near(hidden[0].needle, hidden[0].keyword, answer)


def found_or_near(needle: str, keyword: str, answer: str) -> float:
    """1 for an answer with the keyword, else a fifth of its similarity to the needle, without white space."""
    if keyword in answer:
        return 1.0
    said, wanted = (re.sub(r"\s+", "", text) for text in (answer, needle))
    longest = max(len(said), len(wanted))
    return _NEAR * (1 - edit_distance(said, wanted) / longest) if longest else _NEAR


def _hidden(record: Record) -> _Hidden:
    return _Hidden(record.text("needle"), record.text("retrieval_question"), record.text("arg2"))
