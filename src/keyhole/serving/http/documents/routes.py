"""The routes of `/v1/documents`; each sees the documents of the served model only."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from keyhole.core.errors import UnknownDocumentError
from keyhole.documents.library import Library
from keyhole.documents.opening import put_by
from keyhole.documents.store import Document
from keyhole.serving.http.answer import EventStream, comment, event, json_answer
from keyhole.serving.http.backend import Ticket
from keyhole.serving.http.body import read_json
from keyhole.serving.http.documents.uploads import read_upload, ttl_of
from keyhole.serving.http.errors import ApiError, failed
from keyhole.serving.http.fields import Fields
from keyhole.serving.http.service import (
    Service,
    cancel,
    in_store,
    merged,
    service_of,
    submitted,
    unless_gone,
)
from keyhole.serving.requests import PROMPT, Added, Failed, Progress, Queued


async def add(request: HttpRequest) -> Response:
    """Read a document into the store, in turns with the answers to others."""
    service = service_of(request)
    new, stream = await read_upload(request, service)
    if await in_store(service, partial(_taken, service, new.name)):
        raise ApiError(
            f"the name {new.name!r} is that of a document of another model; give another one",
            status=409,
            param="name",
            code="name_taken",
        )
    tickets = await submitted(service, [partial(service.scheduler.submit_document, new)])
    if stream:
        return EventStream(_told(service, tickets), partial(cancel, tickets))
    document = await unless_gone(request, _added(tickets))
    return json_answer(described(document))


async def listed(request: HttpRequest) -> Response:
    """All documents of the model."""
    service = service_of(request)
    found = await in_store(service, partial(_own, service))
    return json_answer({"object": "list", "data": [described(one) for one in found], "has_more": False})


async def one(request: HttpRequest) -> Response:
    """One document."""
    return json_answer(described(await _named(request)))


async def text(request: HttpRequest) -> Response:
    """The text of a document, as it was read."""
    service, document = service_of(request), await _named(request)
    found = await in_store(service, partial(_text, _library(service), document))
    return Response(found, media_type="text/plain")


async def change(request: HttpRequest) -> Response:
    """Pin a document, or change how long it stays."""
    service, document = service_of(request), await _named(request)
    body = await read_json(request, service.settings.most_prompt)
    fields = Fields(body)
    pinned = fields.maybe("pinned")
    ttl = ttl_of(fields) if "ttl" in body else -1
    fields.finish()
    store = _library(service).store
    changed = partial(store.change, document.name, pinned=pinned, ttl=ttl)
    return json_answer(described(await in_store(service, changed)))


async def remove(request: HttpRequest) -> Response:
    """Forget a document."""
    service, document = service_of(request), await _named(request)
    freed = await in_store(service, partial(_remove, _library(service), document.name))
    return json_answer(
        {"id": document.name, "object": "document.deleted", "deleted": True, "freed_bytes": freed}
    )


def described(document: Document) -> dict[str, Any]:
    """A document as clients see it; where its text came from is not theirs to know."""
    return {
        "id": document.name,
        "object": "document",
        "status": "ready" if document.finished else "incomplete",
        "tokens": len(document.tokens),
        "stored_tokens": document.stored,
        "bytes": document.nbytes,
        "shared_bytes": document.shared,
        "method": document.method,
        "created_at": int(document.created),
        "used_at": int(document.used),
        "hits": document.hits,
        "pinned": document.pinned,
        "ttl": document.ttl,
    }


async def _added(tickets: list[Ticket]) -> Document:
    async with aclosing(merged(tickets)) as events:
        async for found in events:
            if found is not None and isinstance(found[1], Failed):
                raise failed(found[1])
            if found is not None and isinstance(found[1], Added):
                return found[1].document
    raise ApiError("the document was not read", status=500, kind="server_error", code="internal")


async def _told(service: Service, tickets: list[Ticket]) -> AsyncGenerator[str, None]:
    """How far the reading is, as server-sent events."""
    async with aclosing(merged(tickets, service.settings.keep_alive)) as events:
        async for found in events:
            each = None if found is None else found[1]
            if isinstance(each, Queued):
                yield event({"type": "document.queued", "place": each.place})
            elif isinstance(each, Progress):
                yield event({"type": "document.reading", "done": each.done, "total": each.total})
            elif isinstance(each, Added):
                yield event({"type": "document.ready", "document": described(each.document)})
            elif isinstance(each, Failed):
                yield event(failed(each).body())
            else:
                yield comment("keep-alive")


def _library(service: Service) -> Library:
    library = service.scheduler.library
    if library is None:
        raise ApiError("this server keeps no documents", status=501, kind="server_error", code="no_store")
    return library


def _own(service: Service) -> list[Document]:
    """The documents of the model, one of a name: the finished one where there is one.

    What is kept of prompts is none: it has no text, and nobody gave it its name.
    """
    found: dict[str, Document] = {}
    for each in _library(service).documents():
        if each.model == service.settings.stored_as and each.source != PROMPT:
            found.setdefault(each.name, each)
    return list(found.values())


def _taken(service: Service, name: str) -> bool:
    documents = _library(service).documents()
    return any(each.name == name and each.model != service.settings.stored_as for each in documents)


async def _named(request: HttpRequest) -> Document:
    """The document that the path names.

    Raises:
        ApiError: there is none (404).
    """
    name, service = request.path_params["name"], service_of(request)
    for each in await in_store(service, partial(_own, service)):
        if each.name == name:
            return each
    raise ApiError(f"there is no document {name[:100]!r}", status=404, code="document_not_found")


def _text(library: Library, document: Document) -> bytes:
    if not document.finished:
        raise UnknownDocumentError(f"{document.name!r} is not read to its end; add it again to go on")
    with library.store.open(document.name, counted=False) as lease:
        said = put_by(lease)
        if said is None:
            raise UnknownDocumentError(f"the text of {document.name!r} was lost; add it again")
        return said.tensor("text").numpy().tobytes()


def _remove(library: Library, name: str) -> int:
    try:
        return library.remove(name)
    except UnknownDocumentError:
        raise
    except ValueError as error:
        raise ApiError(str(error), status=409, code="document_in_use") from error
