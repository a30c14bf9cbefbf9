"""Answers as JSON and as server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send


def dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def json_answer(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(dumped(value).encode(), status, headers, media_type="application/json")


def event(value: Any, name: str | None = None) -> str:
    """One server-sent event with a JSON value."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {dumped(value)}\n\n"


def comment(text: str) -> str:
    """A line that clients of server-sent events pass over."""
    return f": {text}\n\n"


class EventStream(StreamingResponse):
    """Server-sent events, made by a generator.

    Args:
        release: called in any case when the answer has ended or the client has gone, also before it began.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str, None], release: Callable[[], object]) -> None:
        super().__init__(events, headers={"X-Accel-Buffering": "no"})
        self._events, self._release = events, release

    async def stream_response(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._events) as events:
            async for each in events:
                await send({"type": "http.response.body", "body": each.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._release()
