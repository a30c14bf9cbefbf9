"""Connections that are slow, silent or too many: bounded beneath the application, which cannot see them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from keyhole.serving.http.answer import dumped
from keyhole.serving.http.errors import ApiError, overloaded

REQUEST_SECONDS = 300.0  # for a whole request to arrive
GAP_SECONDS = 20.0  # between parts of it, and before its first
WRITE_SECONDS = 60.0  # that a client may leave its answer unread
MOST_CONNECTIONS = 512


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, with deadlines for what a client sends and reads, and errors in OpenAI's form."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._gap: asyncio.TimerHandle | None = None
        self._whole: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            self._refuse(overloaded(f"more than {MOST_CONNECTIONS} connections are open"))
            return
        self._whole = self.loop.call_later(REQUEST_SECONDS, self._late)
        self._gap = self.loop.call_later(GAP_SECONDS, self._late)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._gap, self._whole, self._stalled):
            _stop(timer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self._stalled or self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stalled = _stop(self._stalled)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP."""
        self._refuse(ApiError(msg, code="invalid_http"))

    def _watch(self) -> None:
        """Set the deadlines anew after something arrived."""
        self._gap = _stop(self._gap)
        begun = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
        if self.transport.is_closing() or not (begun or self.conn.their_state is h11.SEND_BODY):
            self._whole = _stop(self._whole)
            return
        self._gap = self.loop.call_later(GAP_SECONDS, self._late)
        self._whole = self._whole or self.loop.call_later(REQUEST_SECONDS, self._late)

    def _late(self) -> None:
        if self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
            self.transport.close()  # opened and never used, as browsers do
        else:
            self._refuse(ApiError("the request did not arrive in time", status=408, code="request_timeout"))

    def _refuse(self, error: ApiError) -> None:
        """Answer where no answer has begun, and close the connection."""
        if self.transport.is_closing():
            return
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            with suppress(h11.LocalProtocolError):
                self._answer(error)
        if self.cycle is not None:
            # What the application still sends to this request has nowhere to go.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()
        self._stalled = self._stalled or self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def _answer(self, error: ApiError) -> None:
        data = dumped(error.body()).encode()
        headers = {"Content-Type": "application/json", "Connection": "close"} | error.headers
        told = [*headers.items(), ("Content-Length", str(len(data)))]
        response = h11.Response(status_code=error.status, headers=told, reason=b"Refused")
        for each in (response, h11.Data(data=data), h11.EndOfMessage()):
            self.transport.write(self.conn.send(each) or b"")


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
