"""A needle in a haystack: one fact at every depth of real texts of every length, and its picture."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any

import numpy as np

from keyhole.evaluation.benchmarks.base import Benchmark, Sample, Turn
from keyhole.evaluation.benchmarks.files import read
from keyhole.evaluation.benchmarks.grid import hide
from keyhole.evaluation.benchmarks.ruler import share_found
from keyhole.evaluation.haystack import Haystack
from keyhole.evaluation.phrases import TEXT_HEAD, ask_one, draw_keys, draw_values, needle
from keyhole.evaluation.texts import texts

_LIMIT = 16  # tokens of an answer, which is a number


class Needle(Benchmark):
    """Made here, in the manner of Kamradt's test: of the shipped texts, or of the .txt files in the data.

    The answer's first words are given, so that models without instruction tuning can be asked too.
    """

    name = "niah"
    paper = "Kamradt 2023, github.com/gkamradt/LLMTest_NeedleInAHaystack"
    is_grid = True

    def tasks(self) -> list[str]:
        return ["niah"]

    def samples(self, task: str) -> Iterable[Sample]:
        haystacks = self._haystacks()
        options = self.options
        for length, depth, repeat in product(options.lengths, options.depths, range(options.repeats)):
            rng = np.random.default_rng([options.seed, length, depth, repeat])
            text = haystacks[int(rng.integers(len(haystacks)))]
            yield self._sample(task, text, rng, length, depth, repeat)

    def _sample(
        self, task: str, text: str, rng: np.random.Generator, length: int, depth: int, repeat: int
    ) -> Sample:
        assert self.options.tokenizer is not None
        key = draw_keys(rng, 1)[0]
        value = draw_values(rng, 1, Haystack.from_text(text).numbers)[0]
        asked = ask_one(key)
        context = hide(
            self.options.tokenizer,
            text,
            [f"{needle(key, value).strip()} "],
            [depth],
            length - _LIMIT,
            lambda context: TEXT_HEAD + context + asked,
        )
        return Sample(
            task=task,
            id=f"{length}-{depth}-{repeat}",
            prompt=TEXT_HEAD + context,
            turns=(Turn([value], _LIMIT),),
            chat=False,
            reply=asked,
            groups={"length": str(length), "depth": str(depth)},
        )

    def _haystacks(self) -> list[str]:
        if self.data is None:
            return [text.text for text in texts()]
        found = [read(path) for path in sorted(self.folder.rglob("*.txt"))]
        if not any(text.strip() for text in found):
            raise ValueError(f"there are no .txt files with text in {str(self.folder)!r}")
        return [text for text in found if text.strip()]

    def score(self, metric: str, reference: Any, answer: str) -> float:  # noqa: ARG002
        return share_found(reference, answer)
