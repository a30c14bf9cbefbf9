"""A scheduler without a model: it answers what a test wants, at the pace that it wants."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from types import SimpleNamespace

import numpy as np

from keyhole.core.errors import UnknownDocumentError
from keyhole.documents.form import behind
from keyhole.methods import Recipe
from keyhole.serving.requests import (
    LAST,
    Added,
    Failed,
    Finished,
    Logprob,
    OverloadedError,
    Piece,
    Progress,
    Queued,
    ServedUsage,
    Started,
)
from tests.evaluation.small_text import byte_tokenizer

TEXT = "Grüße, 世界! 🌊 The tide is full."


class FakeTicket:
    """Events of a list; before the last one it waits for `held`, an event, or until it is cancelled."""

    def __init__(self, events, held, over):
        self._events, self._held, self._over = events, held, over
        self._stop, self._begun = threading.Event(), False

    async def events(self):
        self._begun, end = True, "stopped"
        try:
            for each in self._events:
                if isinstance(each, LAST):
                    await self._waited()
                    if self._stop.is_set():
                        yield Failed("the request was cancelled", "stopped")
                        return
                    end = each.reason if isinstance(each, Finished) else getattr(each, "kind", "added")
                yield each
        finally:
            self._over(end)

    async def _waited(self):
        while self._held is not None and not self._stop.is_set() and not self._held.is_set():
            await asyncio.sleep(0.01)

    def cancel(self):
        if not self._begun and not self._stop.is_set():
            self._over("stopped")
        self._stop.set()


class FakeLibrary:
    """Documents in memory, which nobody reads."""

    path = "/srv/private/documents"

    def __init__(self):
        self._held, self.store = {}, self

    def add(self, *, text, name, method, model=None, pinned=None, ttl=None):
        told = {"tokens": np.zeros(len(text), np.uint32), "stored": len(text), "finished": True}
        told |= {"nbytes": 1, "shared": 0, "created": 0.0, "used": 0.0, "hits": 0, "source": "text"}
        self._held[name] = SimpleNamespace(
            name=name, method=str(method), model=model or "", pinned=bool(pinned), ttl=ttl, **told
        )
        return self._held[name]

    def documents(self):
        return list(self._held.values())

    def document(self, name):
        if name not in self._held:
            raise UnknownDocumentError(f"there is no document {name!r}")
        return self._held[name]

    def change(self, name, *, pinned, ttl):  # noqa: ARG002
        return self.document(name)

    def remove(self, name):
        self.document(name)
        del self._held[name]
        return 1

    def open(self, name, *, counted):  # noqa: ARG002
        raise UnknownDocumentError(f"the text of {name!r} is not kept here")


class FakeScheduler:
    """Answers every prompt by `text`, a character a piece, or by a list of pieces.

    Attributes:
        requests: what was submitted.
        ends: how tickets ended.
        error: raised by `submit`.
        failure: reported in place of the end of an answer.
        held: an event before which answers do not end, unless they are cancelled.
    """

    max_context, slots = 4096, 32
    recipe = Recipe.parse("pqcache(budget=0.1)")

    def __init__(self, library=None, chat_template=None):
        tokenizer = byte_tokenizer().__class__(tokenizer_object=byte_tokenizer().backend_tokenizer)
        tokenizer.chat_template = chat_template
        self.loaded = SimpleNamespace(model=None, tokenizer=tokenizer)
        self.library, self.text, self.alive = library, TEXT, True
        self.requests, self.ends, self.documents = [], Counter(), []
        self.error = self.failure = self.held = None

    @property
    def open(self):
        """Requests that have not ended."""
        return len(self.requests) + len(self.documents) - self.ends.total()

    def submit(self, request):
        if self.error is not None:
            raise self.error
        self.requests.append(request)
        return FakeTicket(self._answer(request), self.held, lambda end: self.ends.update([end]))

    def submit_document(self, new):
        if self.error is not None:
            raise self.error
        self.documents.append(new)
        found = self.library.add(
            text=new.text,
            name=new.name,
            method=new.recipe or self.recipe,
            model="smollm2" if new.name == "elsewhere" else None,
            pinned=new.pinned,
            ttl=new.ttl,
        )
        events = [Queued(1), Started(0), Progress(1, 2), self.failure or Added(found)]
        return FakeTicket(events, self.held, lambda end: self.ends.update([end]))

    def document_prompt(self, name, messages):
        document = self.library.document(name)
        more = "\n".join(message["content"] for message in messages)
        return (*document.tokens.tolist(), *behind(self.loaded.tokenizer, "", more))

    def state(self):
        return SimpleNamespace(
            alive=self.alive,
            waiting=1,
            running=2,
            reading=1,
            held_bytes=3,
            memory=4,
            slots=self.slots,
            queue=6,
            finished=dict(self.ends),
            refused=7,
            tokens={"prompt": 8, "cached": 9, "written": 10, "completion": 11},
        )

    def _answer(self, request):
        pieces = [Piece(part, tuple(self._ids(part)) if len(part) == 1 else (1,)) for part in self.text]
        count, kept = 0, []
        for piece in pieces:
            if count + len(piece.tokens) > request.max_tokens:
                break
            count += len(piece.tokens)
            kept.append(piece)
        if request.logprobs is not None:
            kept = [Piece(p.text, p.tokens, tuple(self._logprob(t, request) for t in p.tokens)) for p in kept]
        reason = "stop" if len(kept) == len(pieces) else "length"
        end = Finished(reason, self._usage(request, count), b"record" if request.record else None)
        return [Queued(2), Queued(1), Started(4), Progress(3, 9), *kept, self.failure or end]

    def _logprob(self, token, request):
        return Logprob(token, -0.5, tuple((token + n, -0.5 - n) for n in range(request.logprobs)))

    def _ids(self, text):
        return self.loaded.tokenizer(text, add_special_tokens=False).input_ids

    def _usage(self, request, count):
        return ServedUsage(
            prompt_tokens=len(request.prompt),
            cached_tokens=4,
            cache_write_tokens=2,
            completion_tokens=count,
            method=str(request.recipe or self.recipe),
            tokens_read=10.0,
            tokens_in_context=40.0,
            share=0.25,
            bytes_read=1000.0,
            bytes_held={"device": 7, "host": 0, "disk": 1},
            missed_mass=0.05,
        )


def overloaded():
    return OverloadedError("32 requests wait already", 7)
