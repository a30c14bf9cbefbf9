"""Clients of an application in front of a fake scheduler: in this process, and over a socket."""

import asyncio
import threading
from contextlib import contextmanager
from types import SimpleNamespace

from starlette.testclient import TestClient

from keyhole.serving.http.app import make_app
from keyhole.serving.http.server import make_server
from keyhole.serving.http.settings import Settings, listen_at

SETTINGS = Settings(model="tiny", metrics=True, keep_alive=0.2)


@contextmanager
def client_of(scheduler, settings=SETTINGS):
    """A client that needs no socket; errors of the server are answers, as for real clients."""
    app = make_app(scheduler, settings)
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as found:
        yield found


@contextmanager
def running(scheduler, settings=SETTINGS, drain=5.0):
    """A server that runs in a thread: its `port`, `server` and `thread`."""
    with listen_at("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        server = make_server(make_app(scheduler, settings), drain=drain)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            thread.join(0.01)
        try:
            yield SimpleNamespace(port=port, server=server, thread=thread)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


@contextmanager
def served(scheduler, settings=SETTINGS):
    """The port of a server that runs in a thread."""
    with running(scheduler, settings) as found:
        yield found.port
