"""One model, many requests: what a server, or a program with several users, calls.

Each answer is what the request gets alone: every call of the model is of one request and of the same tokens
whatever else runs. What a busy machine changes is when it is made.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from threading import Lock
from typing import Any

from keyhole.core.closing import Closing
from keyhole.documents.adding import Adding
from keyhole.documents.form import form_of
from keyhole.documents.library import Library
from keyhole.documents.paths import name_of
from keyhole.documents.recipes import stored_recipe
from keyhole.documents.store import BLOCK, check_ttl
from keyhole.documents.text import check_text
from keyhole.engines.transformers import attach
from keyhole.generation.loading import Loaded
from keyhole.methods import Method, Recipe
from keyhole.serving.adding import AddingDocument
from keyhole.serving.answering import Answering, Bench
from keyhole.serving.conversations import document_prompt
from keyhole.serving.incoming import Checks, check_numbers, stored_document
from keyhole.serving.jobs import Job
from keyhole.serving.measuring import Counts, State
from keyhole.serving.memory import default_memory
from keyhole.serving.recording import Recorder
from keyhole.serving.requests import NewDocument, Request
from keyhole.serving.shelf import Shelf, shelf_of
from keyhole.serving.tickets import Ticket
from keyhole.serving.tokenizing import OwnTokenizer
from keyhole.serving.worker import Worker


class Scheduler(Closing):
    """Answers requests by one model, which nothing else may call meanwhile.

    Args:
        model: the name of the model in the library (`keyhole.documents.models.model_name`).
        library: where documents are, and beginnings of prompts are kept; without it nothing is stored.
        recipe: the method of requests that name none.
        slots: requests that are read or answered at once.
        max_context: tokens of a prompt and its answer; by default the model's range.
        queue: requests that may wait beyond those.
        memory: bytes that all requests hold together; by default half of what is free.
        store_prompts: whether whole blocks of new prompts are stored.
        recorder: makes the record of a request with `Request.record`.

    Raises:
        ValueError: a number is out of range.
        SpecError: the method cannot be read.
        UnsupportedModelError: the model cannot be served, with the reason.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        model: str = "",
        library: Library | None = None,
        recipe: str | Method | Recipe = "pqcache",
        slots: int = 32,
        max_context: int | None = None,
        queue: int = 128,
        memory: int | None = None,
        store_prompts: bool = True,
        recorder: Callable[[], Recorder] | None = None,
    ) -> None:
        check_numbers(slots=slots, queue=queue, max_context=max_context, memory=memory)
        self.loaded, self.library, self.max_context = loaded, library, max_context
        self.recipe = Recipe.parse(recipe)
        self._model = model
        # Tokenizers cannot be used by two threads at once; nor is one to wait for a document's text.
        own = Loaded(loaded.model, copy.deepcopy(loaded.tokenizer))
        self._texts, self._questions = OwnTokenizer(loaded.tokenizer), OwnTokenizer(loaded.tokenizer)
        self._counts = Counts()
        memory = default_memory(loaded.model.device) if memory is None else memory
        checked = copy.deepcopy(loaded.tokenizer)
        self._checks, self._checking = Checks(loaded.model, checked, self.recipe, max_context, memory), Lock()
        self._shelf = None if library is None else shelf_of(library, model, loaded, own, store_prompts)
        self._bench = Bench(own, self._shelf, self._counts, recorder)
        inside = partial(attach, loaded.model, self.recipe)
        self._worker = Worker(slots=slots, queue=queue, memory=memory, chunk=BLOCK, inside=inside)

    def submit(self, request: Request) -> Ticket:
        """Let a request be answered. With a document it is looked up on the disk, which takes a moment.

        Raises:
            OverloadedError: as many requests wait as may, or the scheduler stops.
            UnknownDocumentError: there is no such document.
            TooLongError: prompt and answer are longer, or hold more memory, than may be.
            ValueError: something else that can never be served.
        """
        self._worker.check_room()
        name = request.document
        document = None if name is None else stored_document(self._needed().store, name, self._model)
        with self._checking:
            recipe = self._checks.recipe(request, document)
            needs = self._checks.needs(recipe, len(request.prompt) + request.max_tokens)
        ticket = Ticket(self._worker.wake)
        held = 0 if document is None else len(document.tokens)
        return self._submitted(Answering(ticket, request, recipe, self._bench, needs=needs, held=held))

    def submit_document(self, new: NewDocument) -> Ticket:
        """Let a document be read and stored. Its text is tokenised first, which takes a moment.

        Raises:
            OverloadedError, TooLongError, ValueError: as `submit`; also where there is no library.
        """
        self._worker.check_room()
        shelf = self._needed()
        recipe = stored_recipe(new.recipe or self.recipe, new.kv_dtype)
        name = name_of(new.name, None)
        if not new.text.strip():
            raise ValueError("the document is empty; give some text")
        check_text("the document", new.text)
        check_ttl(new.ttl)
        with self._checking:
            self._checks.check_recipe(recipe)
            self._checks.check_text(len(new.text), recipe, beyond=new.beyond_range)
        with self._texts as tokenizer:
            tokens = len(form_of(tokenizer, new.text, new.chat).ids)
        with self._checking:
            needs = self._checks.needs(recipe, tokens)
        adding = Adding(
            name, new.text, self._model, recipe, new.chat, new.source, new.beyond_range, new.pinned, new.ttl
        )
        ticket, counts = Ticket(self._worker.wake), self._counts
        return self._submitted(AddingDocument(ticket, adding, shelf, counts, needs=needs, tokens=tokens))

    def document_prompt(self, name: str, messages: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
        """Token ids of a conversation behind a stored document, for a `Request` with that document.

        The document stands at the head of the first user message, as for `keyhole.Library.chat`; a system
        message is put in front of the first question. One message gives the ids of `keyhole.Library.ask`.

        Args:
            messages: with "role" and "content", of user and assistant in turn, the last one the user's.

        Raises:
            UnknownDocumentError: there is no such document.
            ValueError: the messages, or the tokenizer, do not fit it.
        """
        store = self._needed().store
        recipe = Recipe.parse(stored_document(store, name, self._model).method)
        with self._checking:
            self._checks.check_text(sum(len(str(one["content"])) for one in messages), recipe)
        with self._questions as tokenizer:
            return document_prompt(store, tokenizer, name, messages)

    def state(self) -> State:
        """What goes on now."""
        worker = self._worker
        with worker.lock:
            running = list(worker.running)
            return State(
                alive=worker.alive,
                waiting=len(worker.waiting),
                running=len(running),
                reading=sum(1 for job in running if job.unread),
                held_bytes=worker.held,
                memory=worker.memory,
                slots=worker.slots,
                queue=worker.queue,
                finished=dict(worker.pace.ended),
                refused=worker.pace.refused,
                tokens=self._counts.tokens,
                chunk_seconds=self._counts.chunk_seconds,
            )

    def close(self, *, drain: bool = True, patience: float = 30.0) -> bool:
        """Take no new requests, and end.

        Args:
            drain: let those that wait or run go on for at most `patience` seconds. What is left then fails.

        Returns:
            Whether none failed because of it.
        """
        finished = self._worker.close(drain=drain, patience=patience)
        if self._shelf is not None:
            self._shelf.close()
        return finished

    def _submitted(self, job: Job) -> Ticket:
        self._worker.submit(job)
        return job.ticket

    def _needed(self) -> Shelf:
        if self._shelf is None:
            raise ValueError("this server keeps no documents; start it with a store")
        return self._shelf
