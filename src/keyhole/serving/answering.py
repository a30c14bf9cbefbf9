"""A request at work: what is stored is taken, the rest of the prompt is read, tokens are generated."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from keyhole.core.errors import StoreError
from keyhole.documents.store import BLOCK
from keyhole.generation.decoding import Token, decode
from keyhole.generation.loading import Loaded
from keyhole.generation.sampling import sampler
from keyhole.generation.text import stop_tokens
from keyhole.methods import Recipe
from keyhole.serving.jobs import Job
from keyhole.serving.measuring import Counts, failed_by, usage_of
from keyhole.serving.pieces import Pieces
from keyhole.serving.reading import DocumentReading, PromptReading, Reading
from keyhole.serving.recording import Recorder
from keyhole.serving.requests import Failed, Finished, Piece, Progress, Reason, Request, Started
from keyhole.serving.shelf import Shelf
from keyhole.serving.tickets import Ticket


@dataclass(frozen=True)
class Bench:
    """What all requests are answered with.

    Attributes:
        recorder: makes the records of requests that want one.
    """

    loaded: Loaded
    shelf: Shelf | None
    counts: Counts
    recorder: Callable[[], Recorder] | None = None


class Answering(Job):
    """The answer to a request; `held` tokens of its prompt are those of a stored document."""

    def __init__(
        self, ticket: Ticket, request: Request, recipe: Recipe, bench: Bench, *, needs: int, held: int = 0
    ) -> None:
        super().__init__(ticket, needs, unread=len(request.prompt) - held)
        self._request, self._recipe, self._bench = request, recipe, bench
        self._reading: Reading | None = None
        self._recorder: Recorder | None = None
        self._pieces = Pieces(bench.loaded.tokenizer, request.stop, request.logprobs)
        self.outcome: Reason = "length"

    def work(self) -> Generator[None]:
        self._reading = reading = self._start()
        total, done = len(self._request.prompt), reading.cached
        self._bench.counts.add("cached", done)
        self.ticket.put(Started(done))
        self.unread = total - done
        yield
        for read in reading.pieces():
            self._bench.counts.add("prompt", read - done)
            self.unread, done = total - read, read
            self.ticket.put(Progress(done, total))
            yield
        if total > BLOCK:  # building an index takes its time
            self.unread = max(self.unread, BLOCK + 1)
        yield from reading.index()
        self.unread = 1
        self._bench.counts.add("prompt", total - done)  # by the first step
        yield from self._generate(reading)

    def _start(self) -> Reading:
        request, bench = self._request, self._bench
        if request.document is not None:
            if bench.shelf is None:
                raise StoreError("this server keeps no documents")
            return DocumentReading(request, request.document, self._recipe, bench.shelf)
        ids = np.asarray(request.prompt, np.int64)
        return PromptReading(bench.loaded, self._recipe, ids, bench.shelf, bench.counts)

    def _begun(self) -> Reading:
        if self._reading is None:
            raise RuntimeError("a request cannot end before it began")
        return self._reading

    def _generate(self, reading: Reading) -> Iterator[None]:
        request, model = self._request, self._bench.loaded.model
        if request.record and self._bench.recorder is not None:
            self._recorder = self._bench.recorder()
            self._recorder.begin(model, reading.cache, request.prompt)
        steps = decode(
            model,
            reading.last,
            reading.cache,
            limit=request.max_tokens,
            stops=stop_tokens(*self._bench.loaded),
            pick=self._pieces.watching(sampler(request.temperature, request.seed, request.top_p)),
        )
        for token in steps:
            self.unread = 0
            self._put(token)
            if self._pieces.stopped:
                self.outcome = "stop"
            if self._pieces.stopped or self._pieces.count == request.max_tokens:
                return
            yield

    def _put(self, token: Token) -> None:
        self._bench.counts.add("completion", 1)
        if self._recorder is not None:
            self._recorder.step(token.id)
        self._report(self._pieces.add(token))

    def _report(self, piece: Piece | None) -> None:
        if piece is not None:
            self.ticket.put(piece)

    def finish(self) -> None:
        reading = self._begun()
        self._report(self._pieces.end())
        reason, (record, unrecorded) = self.outcome, self._recorded()
        usage = usage_of(
            reading.cache,
            prompt=len(self._request.prompt),
            cached=reading.cached,
            completion=self._pieces.count,
        )

        def report(written: int) -> None:
            self._bench.counts.add("written", written)
            found = replace(usage, cache_write_tokens=written)
            self.ticket.put(Finished(reason, found, record, unrecorded))

        reading.end(report)

    def failure(self, error: Exception) -> Failed:
        shelf = self._bench.shelf
        failed = failed_by(error, None if shelf is None else shelf.store.path)
        cannot_open = self._reading is None and self._request.document and isinstance(error, ValueError)
        return Failed(failed.error, "document") if cannot_open else failed

    def _recorded(self) -> tuple[Any, str | None]:
        """The record, and why there is none of an answer that is whole without it."""
        recorder, self._recorder = self._recorder, None
        try:
            return None if recorder is None else recorder.end(), None
        except ValueError as error:
            return None, str(error)

    def close(self) -> None:
        super().close()
        if self._recorder is not None:
            self._recorder.drop()
        if self._reading is not None:
            self._reading.close()
            self._reading = None
