"""How the server is set up, and what is checked of that early. Nothing here imports torch."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from keyhole.serving.http.keys import Keys

MOST_PROMPT = 8 << 20  # bytes of a request: more than a million token ids
MOST_FILE = 32 << 20  # bytes of a request with a document


@dataclass(frozen=True)
class Settings:
    """How requests are taken.

    Attributes:
        model: under which the model is listed and asked for.
        stored_as: under which documents of the model are stored.
        keys: of which every request must carry one; none, and no request needs one.
        hosts: names in `Host` headers that are served, beside IP addresses and localhost.
        origins: of other sites whose pages may use the server, such as "https://example.org".
        metrics: serve `/metrics`.
        records: the scheduler keeps records of what was read, as bytes, for requests that ask for that.
        most_prompt, most_file: bytes of a request at most, without and with a document.
        keep_alive: seconds without an event after which a stream gets a comment.
    """

    model: str
    stored_as: str = ""
    keys: Keys = field(default_factory=Keys)
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    metrics: bool = False
    records: bool = False
    most_prompt: int = MOST_PROMPT
    most_file: int = MOST_FILE
    keep_alive: float = 15.0


def is_loopback(host: str) -> bool:
    """Whether an address to listen at is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_exposure(host: str, keys: Keys) -> None:
    """Raise ValueError for a server that others can reach without a key."""
    if not is_loopback(host) and not keys:
        raise ValueError(
            f"the host {host!r} can be reached from other machines, which needs keys; give --api-key-file, "
            "or leave --host at 127.0.0.1"
        )


def check_origin(origin: str) -> str:
    """An origin as browsers send it: scheme, host and a port that is not the scheme's own.

    Raises:
        ValueError: it is none, or `*`.
    """
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    plain = parts.scheme in ("http", "https") and parts.hostname and not parts.username
    if not plain or parts.path.rstrip("/") or parts.query or parts.fragment:
        raise ValueError(
            f"the origin {origin!r} is not usable; give scheme and host, such as https://example.org, one "
            "for each site ('*' would let every web page use the server)"
        )
    host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else parts.hostname
    usual = {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{host}" + (f":{port}" if port not in (None, usual) else "")


def names_of(host: str, also: list[str]) -> frozenset[str]:
    """The names under which a server that listens at `host` is addressed, in lower case."""
    own = [] if is_loopback(host) else [host, socket.gethostname()]
    return frozenset(name.lower().rstrip(".") for name in [*own, *also])


def listen_at(host: str, port: int) -> socket.socket:
    """A socket bound to an address; it listens when it is served.

    Raises:
        ValueError: the port is taken, or there is no such address here.
    """
    bare = host.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(bare, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ValueError(f"cannot listen at the host {host!r}: {error.strerror}") from error
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        raise ValueError(
            f"cannot listen at {host}, port {port}: {error.strerror}; give another --port (0 takes a "
            "free one)"
        ) from error
    return found
