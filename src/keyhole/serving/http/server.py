"""Running the application: signals, draining, and how connections are taken."""

from __future__ import annotations

import asyncio
import socket
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from keyhole.serving.http.protocol import BoundedProtocol

KEEP_ALIVE_SECONDS = 30  # that a connection may be idle between requests


class Server(uvicorn.Server):
    """Ends on a signal when all requests have ended, on a second one at once."""

    _loop: asyncio.AbstractEventLoop | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)
        if self.force_exit:
            await self.lifespan.shutdown()  # which was left out

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self.should_exit and self._loop is not None:
            self.force_exit = True
            self._loop.call_soon_threadsafe(self._abort)
        self.should_exit = True

    def _abort(self) -> None:
        """Drop all connections, for whose end a closed server would wait."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()  # type: ignore[union-attr]


def make_server(app: ASGIApp, *, drain: float) -> Server:
    """A server of the application.

    Args:
        drain: seconds that requests may take when the server ends.
    """
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http=BoundedProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(drain)),
    )
    return Server(config)


def serve(app: ASGIApp, listener: socket.socket, *, drain: float = 60.0) -> None:
    """Serve until a signal ends it; `listener` is bound, and closed at the end."""
    with listener:
        asyncio.run(make_server(app, drain=drain).serve([listener]))
