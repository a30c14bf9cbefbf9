"""Over sockets: clients that go away, that are slow, that send no HTTP; and how the server ends."""

import json
import signal
import socket
import threading
import time
from dataclasses import replace

import pytest

from keyhole.serving.http import protocol
from tests.serving.http.clients import SETTINGS, running, served
from tests.serving.http.test_chat import HI, PATH


def raw(body=HI, head="", path=PATH):
    data = json.dumps(body).encode()
    lines = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{head}"
    return f"{lines}Content-Length: {len(data)}\r\n\r\n".encode() + data


def connected(port):
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def all_of(connection):
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def until(condition, seconds=60):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_cancels_its_requests(live, scheduler, stream):
    scheduler.held = threading.Event()
    with connected(live) as connection:
        connection.sendall(raw(HI | {"stream": stream, "n": 2}))
        until(lambda: len(scheduler.requests) == 2)
        if stream:
            said = b""
            while b"queued" not in said:
                part = connection.recv(65536)
                assert part
                said += part
    until(lambda: scheduler.ends["stopped"] == 2)


def test_a_silent_stream_is_kept_alive_by_comments(live, scheduler):
    scheduler.held = threading.Event()
    with connected(live) as connection:
        connection.sendall(raw(HI | {"stream": True}))
        got = b""
        while b": keep-alive" not in got:
            got += connection.recv(65536)


def test_a_request_that_does_not_arrive_is_408(scheduler, monkeypatch):
    monkeypatch.setattr(protocol, "GAP_SECONDS", 0.3)
    with served(scheduler) as port:
        for sent in (b"POST /v1", b"POST / HTTP/1.1\r\nHost: a\r\n", raw()[:-5]):
            with connected(port) as connection:
                connection.sendall(sent)
                assert b" 408 " in all_of(connection)
        with connected(port) as connection:
            assert all_of(connection) == b""


def test_a_request_that_trickles_ends_at_its_deadline(scheduler, monkeypatch):
    monkeypatch.setattr(protocol, "REQUEST_SECONDS", 0.5)
    with served(scheduler) as port, connected(port) as connection, pytest.raises(OSError, match=r"."):
        trickle(connection, raw(HI | {"user": "x" * 10_000}))
    assert not scheduler.requests


def trickle(connection, data):
    for byte in data:
        connection.sendall(bytes([byte]))
        time.sleep(0.005)


@pytest.mark.slow
def test_an_answer_that_is_not_read_is_given_up(scheduler, monkeypatch):
    monkeypatch.setattr(protocol, "WRITE_SECONDS", 0.5)
    # More than the buffers between the two hold.
    scheduler.held, scheduler.text = threading.Event(), ["x" * 100_000] * 100
    with served(scheduler, replace(SETTINGS, keep_alive=60)) as port, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        connection.sendall(raw(HI | {"stream": True}))
        until(lambda: scheduler.ends["stopped"] == 1)


def test_too_many_connections_are_503(scheduler, monkeypatch):
    monkeypatch.setattr(protocol, "MOST_CONNECTIONS", 2)
    with served(scheduler) as port, connected(port), connected(port) as second, connected(port) as third:
        answer = all_of(third)
        assert b" 503 " in answer
        assert b"Retry-After" in answer
        second.sendall(raw(head="Connection: close\r\n"))
        assert b" 200 " in all_of(second)


@pytest.mark.parametrize(
    "sent",
    [
        b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost : b\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 40_000,
        raw()[:-1].replace(b"Content-Length", b"Transfer-Encoding: chunked\r\nX") + b"zz\r\n",
    ],
)  # fmt: skip
def test_what_is_no_http_is_400_in_openais_form(live, sent, caplog):
    with connected(live) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        answer = all_of(connection)
    if answer:
        assert b" 400 " in answer or b" 431 " in answer
        assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]["message"]
    assert "Traceback" not in caplog.text


def test_requests_on_one_connection_are_answered_in_order(live):
    with connected(live) as connection:
        connection.sendall(raw() + raw(HI | {"model": "gpt"}) + raw(head="Connection: close\r\n"))
        answer = all_of(connection)
    statuses = [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"404", b"200"]


def test_what_runs_is_finished_when_the_server_ends(scheduler):
    scheduler.held = threading.Event()
    with running(scheduler) as found, connected(found.port) as connection:
        connection.sendall(raw())
        until(lambda: scheduler.requests)
        found.server.handle_exit(signal.SIGTERM, None)
        until(lambda: refuses(found.port))
        assert found.thread.is_alive()
        scheduler.held.set()
        assert b" 200 " in all_of(connection)
        found.thread.join(10)
        assert not found.thread.is_alive()
    assert scheduler.ends == {"stop": 1}


def test_a_second_signal_ends_at_once(scheduler, caplog):
    scheduler.held = threading.Event()
    with running(scheduler, drain=60) as found, connected(found.port) as connection:
        connection.sendall(raw(HI | {"stream": True}))
        until(lambda: scheduler.requests)
        found.server.handle_exit(signal.SIGTERM, None)
        found.server.handle_exit(signal.SIGTERM, None)
        found.thread.join(10)
        assert not found.thread.is_alive()
    assert "Traceback" not in caplog.text


def refuses(port):
    try:
        connected(port).close()
    except ConnectionRefusedError:
        return True
    return False
