"""Answers to questions behind one context, which is read once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from keyhole.cache.usage import Usage
from keyhole.core.break_even import ALWAYS, BreakEven
from keyhole.engines.transformers import KeyholeCache, attach, served_layers
from keyhole.feedforward import Activated
from keyhole.generation.decoding import CHUNK, Token, build_index, decode, prefill
from keyhole.generation.forking import fork, rewind
from keyhole.generation.loading import Loaded
from keyhole.generation.prompt import Asked
from keyhole.generation.sampling import sampler
from keyhole.generation.text import TextWriter, stop_tokens
from keyhole.methods.recipe import Recipe
from keyhole.storage import Footprint

Progress = Callable[[str, int, int], None]  # what is being done, tokens done, tokens in all
_CPU_CHUNK = 1024


@dataclass(frozen=True)
class Answer:
    """The answer to one question, and what it cost.

    Attributes:
        question: as it was asked.
        text: the answer, up to a stop string or stop token.
        tokens: ids of all generated tokens, a stop token included.
        ended: whether the model, or a stop string, ended it; else `max_new_tokens` did.
        method: with its options, as used.
        usage: what decoding this answer read.
        activated: weights that decoding this answer read, and skipped.
        footprint: bytes the cache held at the end, by tier.
        prompt_tokens: tokens of context and question.
        prompt_seconds: reading and indexing the context, and reading the question. Answers that share a
            context all have its time.
        seconds: of the decode steps; the first is the call that reads a question to its end, where that gives
            the first token.
        selects: from which context length on the method selects, and what that follows from; below it
            everything is read.
    """

    question: str
    text: str
    tokens: tuple[int, ...]
    ended: bool
    method: str
    usage: Usage
    activated: Activated
    footprint: Footprint
    prompt_tokens: int
    prompt_seconds: float
    seconds: float
    selects: BreakEven

    def __str__(self) -> str:
        return self.text

    @property
    def read_fraction(self) -> float:
        """Tokens that decoding read, of those in the context."""
        return self.usage.read / self.usage.tokens if self.usage.tokens else 1.0


class AnswerRecorder(Protocol):
    """Follows answers as they come, see `keyhole.view.Recorder`."""

    def begin(
        self, cache: KeyholeCache, tokenizer: PreTrainedTokenizerBase, prompt: Asked, question: str
    ) -> None:
        """The question's tokens, and then the answer, will be appended to a cache."""
        ...

    def generated(self, token: Token) -> None:
        """The last call gave a token."""
        ...

    def end(self) -> None:
        """The answer is over, or was interrupted."""
        ...


@dataclass(frozen=True)
class Options:
    """How answers are decoded."""

    limit: int
    temperature: float
    top_p: float
    seed: int
    stop: tuple[str, ...]
    stream: Callable[[str], object] | None
    recorder: AnswerRecorder | None = None


class Reader:
    """Answers questions behind one context, by one method."""

    def __init__(
        self, loaded: Loaded, recipe: Recipe, options: Options, chunk: int | None, progress: Progress | None
    ) -> None:
        self._model, self._tokenizer = loaded
        self._recipe, self._options, self._progress = recipe, options, progress
        self._chunk = chunk or chunk_of(self._model, recipe)
        self._stops = stop_tokens(*loaded)

    def answers(self, questions: list[tuple[str, Asked]], question_aware: bool) -> Iterator[Answer]:
        with attach(self._model, self._recipe):
            cache = KeyholeCache(self._model, self._recipe)
            tokens = _ahead(questions[0][1], question_aware)
            seconds = self._read(cache, tokens)
            for number, (question, prompt) in enumerate(questions):
                last = number == len(questions) - 1
                mine = cache if last else fork(cache)
                yield self.answer(question, prompt, mine, tokens.shape[1], seconds)
                if not last:
                    rewind(mine, tokens.shape[1])

    def _read(self, cache: KeyholeCache, tokens: Tensor) -> float:
        done, total = 0, tokens.shape[1]

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if self._progress is not None:
                self._progress("reading the prompt" if done < total else "indexing", done, total)

        advance(0)
        seconds = prefill(
            self._model, tokens.to(self._model.device), cache, chunk=self._chunk, progress=advance
        )
        return seconds + build_index(self._model, cache)

    def answer(
        self,
        question: str,
        prompt: Asked,
        cache: KeyholeCache,
        held: int,
        read: float = 0.0,
        *,
        together: bool = False,
    ) -> Answer:
        """The answer to one question, in a cache that has the first `held` tokens of the prompt.

        The model must be attached.

        Args:
            read: what reading the first tokens took, in seconds.
            together: the prompt's last token is read by the call of those before it, which gives the first
                token of the answer, and not by a step of its own.
        """
        options = self._options
        behind = _all(prompt)[:, held:]
        parts = behind.tensor_split(-(-behind.shape[1] // self._chunk), dim=1)
        last = parts[-1] if together else behind[:, -1:]
        before = behind[:, : -last.shape[1]]
        writer = TextWriter(self._tokenizer, options.stop, options.stream)
        with self._recorded(cache, prompt, question):
            read += prefill(self._model, before.to(self._model.device), cache, chunk=self._chunk)
            tokens = self._decoded(cache, last if together else int(last), writer)
        return Answer(
            question=question,
            text=writer.text,
            tokens=tuple(token.id for token in tokens),
            ended=tokens[-1].ends or writer.stopped,
            method=str(self._recipe),
            usage=cache.usage,
            activated=cache.activated,
            footprint=cache.footprint,
            prompt_tokens=prompt.length,
            prompt_seconds=read,
            seconds=sum(token.seconds for token in tokens),
            selects=_selects(cache),
        )

    def _decoded(self, cache: KeyholeCache, last: int | Tensor, writer: TextWriter) -> list[Token]:
        options = self._options
        pick = sampler(options.temperature, options.seed, options.top_p)
        tokens: list[Token] = []
        for token in decode(self._model, last, cache, limit=options.limit, stops=self._stops, pick=pick):
            tokens.append(token)
            if options.recorder is not None:
                options.recorder.generated(token)
            if not token.ends:
                writer.put(token.id)
            if writer.stopped:
                break
        writer.end()
        return tokens

    @contextmanager
    def _recorded(self, cache: KeyholeCache, prompt: Asked, question: str) -> Iterator[None]:
        recorder = self._options.recorder
        if recorder is None:
            yield
            return
        recorder.begin(cache, self._tokenizer, prompt, question)
        try:
            yield
        finally:
            recorder.end()


def chunk_of(model: PreTrainedModel, recipe: Recipe) -> int:
    """Prompt tokens that are computed at once where nothing else is said."""
    return _CPU_CHUNK if model.device.type == "cpu" and not recipe.drops else CHUNK


def _all(prompt: Asked) -> Tensor:
    return torch.cat([prompt.context, prompt.question], dim=1)


def _ahead(prompt: Asked, question_aware: bool) -> Tensor:
    """What is read before the first question: the context, or all but the last token of the prompt."""
    return _all(prompt)[:, :-1] if question_aware else prompt.context


def _selects(cache: KeyholeCache) -> BreakEven:
    readings = (layer.reading for layer in served_layers(cache))
    return max((reading.dense_below for reading in readings if reading), default=ALWAYS)
