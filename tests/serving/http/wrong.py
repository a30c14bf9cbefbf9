"""Requests that are wrong in one way or another, drawn at random."""

from __future__ import annotations

import json
import socket
import struct
import time
from dataclasses import dataclass
from random import Random
from typing import Any

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "tiny",
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "assistant", "content": "a", "tool_calls": []},
            {"role": "user", "content": "Ü"},
        ],
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 1,
        "n": 1,
        "stop": ["x"],
        "logprobs": True,
        "top_logprobs": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
        "tools": [],
        "x_keyhole": {"method": "pqcache(budget=0.1)"},
    },
    "/v1/completions": {"model": "tiny", "prompt": "Once", "max_tokens": 3, "logprobs": 1, "stream": False},
    "/v1/responses": {
        "model": "tiny",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}],
        "instructions": "i",
        "max_output_tokens": 3,
        "stream": True,
        "text": {"format": {"type": "text"}},
        "tools": [{"type": "function", "name": "f", "parameters": {}}],
        "include": [],
    },
    "/v1/documents": {"name": "a", "text": "words", "pinned": True, "ttl": 5, "method": "dense"},
}
BEHAVIOURS = ("plain",) * 12 + ("half", "leave", "reset", "slow", "cut", "twice")
_PATHS = (
    *BODIES,
    "/",
    "/health",
    "/metrics",
    "/v1/models/x",
    "/v1/documents/a",
    "/v1/documents/a/text",
    "/%00%ff",
)
_KINDS = ("application/json",) * 12 + (
    "text/plain",
    "multipart/form-data; boundary=b",
    "application/json; charset=latin-1",
    "",
    "\xff",
)
_HOSTS = ("127.0.0.1",) * 12 + ("evil.example", "", "[::1]:1", "a,b", "127.0.0.1:99999999")
_NUMBERS = (0, -1, 1, 2**31, 2**63, 10**40, 0.5, -1e308)
_TEXTS = ("", "x", "\0", "\ud800", "🌊" * 50, "a" * 5000, "tiny", "user", "../../etc/passwd")
_NESTED = ([], {}, [[]], [None], {"a": None}, [1, "x", {}], {"type": "text"}, {"": {"": []}})
_LEAVES: tuple[Any, ...] = (None, True, False, *_NUMBERS, *_TEXTS, *_NESTED)
_HEADERS = (
    "Authorization: Bearer",
    "Content-Encoding: gzip",
    "Expect: 100-continue",
    "Origin: https://evil.example",
    "Upgrade: websocket\r\nConnection: upgrade",
    f"X: {'a' * 20_000}",
)


@dataclass(frozen=True)
class Wrong:
    """What a client sends, and how it behaves.

    Attributes:
        data: the request.
        behaviour: one of BEHAVIOURS.
        cut: bytes after which it pauses, or goes away.
    """

    data: bytes
    behaviour: str
    cut: int

    @classmethod
    def draw(cls, source: Random) -> Wrong:
        path = source.choice(_PATHS) if source.random() < 0.3 else source.choice(list(BODIES))
        body = (
            multipart(source) if path == "/v1/documents" and source.random() < 0.3 else broken(source, path)
        )
        form = body.startswith(b"--b")
        kind = "multipart/form-data; boundary=b" if form else source.choice(_KINDS)
        data = _request(source, path, kind, body)
        return cls(data, source.choice(BEHAVIOURS), source.randrange(1, len(data)))


def broken(source: Random, path: str) -> bytes:
    """The body of a route with something wrong in it, or nothing."""
    value: Any = json.loads(json.dumps(BODIES.get(path, {"a": 1})))
    for _ in range(source.choice((0, 1, 1, 1, 2, 3))):
        value = mutated(source, value)
    data = json.dumps(value, ensure_ascii=source.random() < 0.5).encode(errors="surrogatepass")
    chance = source.random()
    if chance < 0.05:
        data = data[: source.randrange(len(data) + 1)]
    elif chance < 0.1:
        at = source.randrange(len(data))
        data = data[:at] + bytes([source.randrange(256)]) + data[at + 1 :]
    elif chance < 0.12:
        data = source.choice(
            (b"[" * 5000, b'{"a":' * 3000, b"[" + b"1," * 5000 + b"1]", b"\xff\xfe", data * 2)
        )
    elif chance < 0.14:
        data = data.decode(errors="replace").encode("utf-16")
    return data


def mutated(source: Random, value: Any) -> Any:
    """A value with one place in it changed, taken out or added."""
    if isinstance(value, dict) and value and source.random() < 0.8:
        name = source.choice(list(value))
        action = source.random()
        if action < 0.1:
            return {key: each for key, each in value.items() if key != name}
        if action < 0.2:
            return value | {source.choice(("odd", "n", "echo", "tools", "file", "")): source.choice(_LEAVES)}
        return value | {name: mutated(source, value[name])}
    if isinstance(value, list) and value and source.random() < 0.7:
        at = source.randrange(len(value))
        return [*value[:at], mutated(source, value[at]), *value[at + 1 :]]
    return source.choice(_LEAVES)


def multipart(source: Random) -> bytes:
    """A form with a file, more or less."""
    parts = [
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nwords\r\n',
        b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\nx\r\n',
        b'--b\r\nContent-Disposition: form-data; name="ttl"\r\n\r\nnan\r\n',
        b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nno file\r\n',
        b"--b\r\nContent-Disposition: form-data\r\n\r\n\xff\r\n",
        b"--b\r\n\xff: \xfe\r\n\r\n",
    ]
    data = b"".join(source.sample(parts, source.randrange(1, 4))) + b"--b--\r\n"
    return data[: source.randrange(3, len(data))] if source.random() < 0.2 else data


def _request(source: Random, path: str, kind: str, body: bytes) -> bytes:
    methods = ("POST",) * 12 + ("GET", "PATCH", "DELETE", "OPTIONS", "HEAD", "BREW")
    lines = [
        f"{source.choice(methods)} {path} HTTP/1.1",
        f"Host: {source.choice(_HOSTS)}",
        f"Content-Type: {kind}",
    ]
    if source.random() < 0.1:
        lines.append(source.choice(_HEADERS))
    chance = source.random()
    if chance < 0.05:
        lines.append("Transfer-Encoding: chunked")
        body = source.choice(
            (b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body), b"zz\r\n", b"5\r\nab", b"-1\r\n\r\n")
        )
    elif chance < 0.1:
        lines.append(f"Content-Length: {source.choice(('-1', 'x', '99999999999', str(len(body) // 2)))}")
    else:
        lines.append(f"Content-Length: {len(body)}")
    lines.append("Connection: close")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def sent_of(connection: socket.socket, wrong: Wrong) -> None:
    """Send a request in the way of its client."""
    if wrong.behaviour in ("cut", "leave", "reset"):
        connection.sendall(wrong.data[: wrong.cut])
    elif wrong.behaviour == "slow":
        connection.sendall(wrong.data[: wrong.cut])
        time.sleep(0.02)
        connection.sendall(wrong.data[wrong.cut :])
    else:
        connection.sendall(wrong.data * (2 if wrong.behaviour == "twice" else 1))
    if wrong.behaviour == "half":
        connection.shutdown(socket.SHUT_WR)
    if wrong.behaviour == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
