"""The application: routes, guards around them, and the log around those."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from keyhole.serving.http import chat, completions, models, page
from keyhole.serving.http.answer import json_answer
from keyhole.serving.http.backend import Scheduler
from keyhole.serving.http.documents import routes as documents
from keyhole.serving.http.errors import ApiError
from keyhole.serving.http.guards import Guards
from keyhole.serving.http.logs import Outermost
from keyhole.serving.http.responses.route import responses
from keyhole.serving.http.service import Service
from keyhole.serving.http.settings import Settings

_ROUTES = [
    Route("/", page.show),
    Route("/health", models.health),
    Route("/v1/models", models.models),
    Route("/v1/models/{name:path}", models.model),
    Route("/v1/chat/completions", chat.chat_completions, methods=["POST"]),
    Route("/v1/completions", completions.completions, methods=["POST"]),
    Route("/v1/responses", responses, methods=["POST"]),
    Route("/v1/documents", documents.listed),
    Route("/v1/documents", documents.add, methods=["POST"]),
    Route("/v1/documents/{name:path}/text", documents.text),
    Route("/v1/documents/{name:path}", documents.one),
    Route("/v1/documents/{name:path}", documents.change, methods=["PATCH"]),
    Route("/v1/documents/{name:path}", documents.remove, methods=["DELETE"]),
]


def make_app(scheduler: Scheduler, settings: Settings) -> ASGIApp:
    """The ASGI application in front of a scheduler, which stays the caller's to close."""
    service = Service(scheduler, settings)
    metrics = None
    more: list[Route] = []
    if settings.metrics:
        from keyhole.serving.http.metrics import Metrics

        metrics = Metrics(scheduler)
        more.append(Route("/metrics", metrics.show))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            service.prompter.close()

    app = Starlette(
        routes=[*_ROUTES, *more],
        lifespan=lifespan,
        exception_handlers={
            ApiError: _told,
            HTTPException: _refused,
            ClientDisconnect: _gone,
            Exception: _failed,
        },
    )
    app.state.service = service
    app.router.redirect_slashes = False
    return Outermost(Guards(app, settings), metrics)


async def _told(_: Request, error: Any) -> Response:
    return json_answer(error.body(), status=error.status, headers=error.headers)


async def _refused(_: Request, error: Any) -> Response:
    """What the router or the parser of forms refuses."""
    said = {404: "there is nothing at this path", 405: "this path does not take that method"}
    codes = {404: "not_found", 405: "method_not_allowed"}
    status = error.status_code
    told = ApiError(
        said.get(status) or str(error.detail), status=status, code=codes.get(status, "bad_request")
    )
    return json_answer(told.body(), status=status, headers=error.headers)


async def _gone(_: Request, __: Exception) -> Response:
    """Nobody reads this."""
    return Response(status_code=499)


async def _failed(_: Request, __: Exception) -> Response:
    told = ApiError("the server failed", status=500, kind="server_error", code="internal")
    return json_answer(told.body(), status=500)
