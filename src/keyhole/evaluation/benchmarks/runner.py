"""Samples of a benchmark answered by methods; a context that several questions share is read once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch

from keyhole.core.errors import SpecError, UnsupportedModelError
from keyhole.evaluation.benchmarks.base import Benchmark, Sample, Turn
from keyhole.evaluation.benchmarks.encoding import Encoded, Encoder, TooLongError, common
from keyhole.evaluation.benchmarks.rowfile import Key, Row, RowFile, digest
from keyhole.generation.loading import Loaded
from keyhole.generation.prompt import Asked, within_range
from keyhole.generation.reader import Answer, Options, Reader
from keyhole.methods import Recipe
from keyhole.methods.beyond import renumbers

_WORTH_SHARING = 64  # tokens that prompts must have in common to be read together
Progress = Callable[[str, int], None]  # task and method, answers there are


@dataclass(frozen=True)
class _Question:
    """One turn as it is asked: its whole prompt, of which `shared` tokens are read with others."""

    sample: Sample
    number: int
    prompt: list[int]
    shared: int
    cut: int

    @property
    def turn(self) -> Turn:
        return self.sample.turns[self.number]


class Run:
    """One benchmark, one model, several methods.

    A method selects at any length unless it says otherwise, as in `keyhole compare`: that is what is judged.
    Methods that drop tokens are shown a whole prompt before they drop, or of a sample with several turns
    what precedes its second question; so they read samples that share a context one by one. Prompts beyond
    the model's range are cut or refused, but for methods that renumber positions, which read them whole.

    Args:
        methods: method strings.
        chunk: prompt tokens computed at once.
    """

    def __init__(
        self,
        loaded: Loaded,
        benchmark: Benchmark,
        encoder: Encoder,
        methods: Sequence[str],
        rows: RowFile,
        *,
        chunk: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._loaded, self._benchmark = loaded, benchmark
        self._encoders = {False: encoder, True: encoder.without_range()}
        self._recipes = {method: _selecting(Recipe.parse(method)) for method in methods}
        self._rows, self._chunk, self._progress, self._done = rows, chunk, progress, 0

    def answer(self, samples: Iterable[Sample]) -> list[Row]:
        """The rows of all samples and methods, those of an earlier run among them."""
        keys: list[Key] = []
        for _, group in groupby(samples, key=lambda sample: (sample.task, sample.context or sample.id)):
            keys += self._answer_group(list(group))
        return [self._rows.rows[key] for key in keys]

    def _answer_group(self, samples: list[Sample]) -> list[Key]:
        """The samples of one context, by all methods."""
        keys = [key for method in self._recipes for sample in samples for key in self._keys(method, sample)]
        self._done += sum(key in self._rows.rows for key in keys)
        encoded: dict[bool, list[Encoded | str]] = {}
        for method, recipe in self._recipes.items():
            if all(key in self._rows.rows for sample in samples for key in self._keys(method, sample)):
                continue
            beyond = renumbers(recipe)
            if beyond not in encoded:
                encoded[beyond] = [self._encode(sample, beyond) for sample in samples]
            pairs = zip(samples, encoded[beyond], strict=True)
            questions = [each for pair in pairs for each in self._questions(method, *pair)]
            for reading in _readings(questions, together=not recipe.drops):
                self._report(f"{reading[0].sample.task}, {method}")
                self._read(method, recipe, reading)
        return keys

    def _encode(self, sample: Sample, beyond: bool) -> Encoded | str:
        try:
            return self._encoders[beyond].encode(sample)
        except TooLongError as error:
            return str(error)

    def _questions(self, method: str, sample: Sample, found: Encoded | str) -> Iterator[_Question]:
        """The turns that are not answered yet; those that cannot be asked get their rows here."""
        for number in range(len(sample.turns)):
            if self._key(method, sample, number) in self._rows.rows:
                continue
            if isinstance(found, str):
                self._add(self._row(method, sample, number, refused=found))
                continue
            question = _Question(sample, number, found.turns[number], found.shared, found.cut)
            try:
                within_range(self._loaded.model, self._recipes[method], _split(question), question.turn.limit)
            except (SpecError, UnsupportedModelError) as error:
                self._add(self._row(method, sample, number, refused=str(error)))
            else:
                yield question

    def _read(self, method: str, recipe: Recipe, reading: Sequence[_Question]) -> None:
        first = reading[0]
        recipe = recipe.for_text(self._encoders[False].text(first.sample, first.turn))
        options = Options(first.turn.limit, 0.0, 1.0, 0, (), None)
        reader = Reader(self._loaded, recipe, options, self._chunk, None)
        asked = [(str(number), _split(each)) for number, each in enumerate(reading)]
        for question, answer in zip(reading, reader.answers(asked, False), strict=True):
            self._add(self._scored(method, question, answer))

    def _scored(self, method: str, question: _Question, answer: Answer) -> Row:
        turn, usage, held = question.turn, answer.usage, answer.footprint
        metric = turn.metric or question.sample.task
        return self._row(
            method,
            question.sample,
            question.number,
            score=self._benchmark.score(metric, turn.reference, answer.text),
            answer=answer.text,
            prompt_tokens=answer.prompt_tokens,
            cut_tokens=question.cut,
            new_tokens=len(answer.tokens),
            tokens_in_context=usage.tokens,
            tokens_read=usage.read,
            bytes_read=usage.bytes,
            bytes_device=held.device,
            bytes_host=held.host,
            bytes_disk=held.disk,
            prompt_seconds=answer.prompt_seconds,
            seconds=answer.seconds,
        )

    def _row(self, method: str, sample: Sample, number: int, score: float | None = None, **found: Any) -> Row:
        key, turn = self._key(method, sample, number), sample.turns[number]
        groups = dict(sample.groups) | ({"turn": str(number + 1)} if len(sample.turns) > 1 else {})
        return Row(**key._asdict(), groups=groups, reference=turn.reference, score=score, **found)

    def _key(self, method: str, sample: Sample, number: int) -> Key:
        turn = sample.turns[number]
        parts = digest(sample.prompt, sample.reply, turn.tail, turn.history, turn.reference, turn.limit)
        return Key(method, sample.task, sample.id, number, parts)

    def _keys(self, method: str, sample: Sample) -> list[Key]:
        return [self._key(method, sample, number) for number in range(len(sample.turns))]

    def _add(self, row: Row) -> None:
        self._rows.add(row)
        self._done += 1

    def _report(self, doing: str) -> None:
        if self._progress is not None:
            self._progress(doing, self._done)


def _selecting(recipe: Recipe) -> Recipe:
    auto = (getattr(stage, "dense_below", None) == "auto" for stage in recipe.stages)
    pairs = zip(recipe.stages, auto, strict=True)
    return Recipe(tuple(replace(stage, dense_below=0) if is_auto else stage for stage, is_auto in pairs))  # type: ignore[call-arg]


def _readings(questions: Sequence[_Question], *, together: bool) -> Iterator[list[_Question]]:
    """Questions that one reading of their context serves; an answer's length is the same in each."""
    if together and len(questions) > 1:
        prompts = [question.prompt for question in questions]
        shared = common(prompts, most=min(question.shared for question in questions))
        if shared >= _WORTH_SHARING:
            yield from _by_limit([replace(question, shared=shared) for question in questions])
            return
    for _, group in groupby(questions, key=lambda question: question.sample.id):
        yield from _by_limit(list(group))


def _by_limit(questions: Sequence[_Question]) -> Iterator[list[_Question]]:
    for limit in dict.fromkeys(question.turn.limit for question in questions):
        yield [question for question in questions if question.turn.limit == limit]


def _split(question: _Question) -> Asked:
    tokens = torch.tensor([question.prompt], dtype=torch.long)
    return Asked(tokens[:, : question.shared], tokens[:, question.shared :])
