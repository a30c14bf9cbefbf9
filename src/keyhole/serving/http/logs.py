"""The outermost layer: request ids, one line of the log for each request, and errors as answers.

Lines have ids, sizes, times and statuses, and nothing of what was asked or answered; paths are logged by
their form, as names of documents are part of them.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
import uuid
from typing import Protocol

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from keyhole.serving.http.answer import json_answer
from keyhole.serving.http.errors import ApiError

log = logging.getLogger("keyhole.serving")
_METHODS = ("GET", "POST", "PATCH", "DELETE", "OPTIONS", "HEAD", "PUT")
_PLAIN = (
    "/",
    "/health",
    "/metrics",
    "/v1/models",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
)
_NAMED = ("/v1/models", "/v1/documents")
_SAFE = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
_GONE = 499  # logged where the client went away


class Observer(Protocol):
    """Counts requests."""

    def observe(self, method: str, route: str, status: int, seconds: float, first: float | None) -> None:
        """`first`: seconds until the first piece of an answer, where there was one."""
        ...


class Outermost:
    """Gives each request an id, logs it, and answers errors in OpenAI's form."""

    def __init__(self, app: ASGIApp, observer: Observer | None = None) -> None:
        self._app, self._observer = app, observer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen = _Seen(scope, receive, send)
        try:
            await self._app(scope, seen.receive, seen.send)
        except ApiError as error:
            await seen.tell(error)
        except ClientDisconnect:
            seen.status = _GONE
        except asyncio.CancelledError:
            # The server ends, and does not wait for this request: its connection is closed.
            seen.status = _GONE
        except Exception as error:
            log.error("%s failed: %s", seen.id, _where(error))
            await seen.tell(ApiError("the server failed", status=500, kind="server_error", code="internal"))
        finally:
            seen.end(self._observer)


class _Seen:
    """One request as the log has it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.id = f"req_{uuid.uuid4().hex}"
        self.status = 0
        self._scope, self._receive, self._send = scope, receive, send
        self._in, self._out, self._began = 0, 0, time.perf_counter()
        scope.setdefault("state", {})["request_id"] = self.id

    async def receive(self) -> Message:
        message = await self._receive()
        self._in += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self.id
            for name, value in _SAFE.items():
                headers.setdefault(name, value)
        self._out += len(message.get("body", b""))
        await self._send(message)

    async def tell(self, error: ApiError) -> None:
        """Answer with an error, unless an answer has begun; then the connection is left to end."""
        if not self.status:
            response = json_answer(error.body(), status=error.status, headers=error.headers)
            await response(self._scope, self._receive, self.send)

    def end(self, observer: Observer | None) -> None:
        seconds, state = time.perf_counter() - self._began, self._scope["state"]
        method = self._scope["method"] if self._scope["method"] in _METHODS else "other"
        route, status = route_of(self._scope["path"]), self.status or _GONE
        told = " ".join(f"{name}={value}" for name, value in state.get("counted", {}).items())
        log.info(
            "%s %s %s %d %.3fs in=%d out=%d %s",
            *(self.id, method, route, status, seconds, self._in, self._out, told),
        )
        if observer is not None:
            first = state.get("first")
            observer.observe(method, route, status, seconds, None if first is None else first - self._began)


def route_of(path: str) -> str:
    """The form of a path, one of a few."""
    if path in _PLAIN or path in _NAMED:
        return path
    for base in _NAMED:
        if path.startswith(f"{base}/"):
            return f"{base}/{{id}}"
    return "other"


def _where(error: BaseException) -> str:
    """The kind of an error and where it arose, without its message, which may quote a request."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    return f"{type(error).__name__} at " + " < ".join(f"{f.filename}:{f.lineno}" for f in reversed(frames))
