"""Links between parties: their shares, what they must agree on, and errors that say who is gone.

Rank 0 is the client, who has the prompt and sees the tokens; rank 1 the server, who has the weights. A
third only helps.
"""

from __future__ import annotations

# pyright: reportMissingImports=false
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

from spu import libspu

CLIENT, SERVER = 0, 1
ROLES = ("client", "server", "helper")


class PartyError(ValueError):
    """Another party is gone, disagrees, or sent what cannot be right."""


def description(addresses: list[str], timeout: float, name: str = "keyhole") -> libspu.link.Desc:
    """The parties' addresses in order of rank; what does not come within `timeout` seconds is an error."""
    desc = libspu.link.Desc()
    desc.id = name
    for rank, address in enumerate(addresses):
        desc.add_party(ROLES[rank], address)
    desc.recv_timeout_ms = desc.http_timeout_ms = int(timeout * 1000)
    desc.connect_retry_interval_ms = 100
    desc.connect_retry_times = max(int(timeout * 10), 1)
    return desc


@contextmanager
def reporting(doing: str, rank: int, timeout: float) -> Iterator[None]:
    """Turn what the link raises into an error that says what this party was doing."""
    try:
        yield
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise PartyError(
            f"the {ROLES[rank]} lost another party while {doing}: no answer within {timeout:g} s, or its "
            f"connection broke ({first}); look at what the others report, and start all again"
        ) from error


def agree(link: libspu.link.Context, what: dict[str, str]) -> None:
    """Make sure that all parties hold the same values.

    Raises:
        PartyError: one of them has another, with both.
    """
    told = [json.loads(text) for text in link.all_gather(json.dumps(what))]
    for rank, theirs in enumerate(told):
        for name, value in what.items():
            if theirs.get(name) != value:
                raise PartyError(
                    f"the {ROLES[link.rank]} and the {ROLES[rank]} differ in {name}: {value} and "
                    f"{theirs.get(name)}; run the same version on the same folder everywhere"
                )


def packed(share: libspu.Share) -> bytes:
    """A share as bytes that `unpacked` checks."""
    parts = [share.meta, *share.share_chunks]
    header = json.dumps([len(part) for part in parts]).encode()
    body = b"".join(parts)
    return hashlib.sha256(body).digest() + len(header).to_bytes(4, "big") + header + body


def unpacked(data: bytes, sender: int) -> libspu.Share:
    """The share that was packed.

    Raises:
        PartyError: bytes are missing or changed.
    """
    check, size = data[:32], int.from_bytes(data[32:36], "big")
    body = data[36 + size :]
    try:
        lengths = json.loads(data[36 : 36 + size])
        whole = hashlib.sha256(body).digest() == check and sum(lengths) == len(body)
    except (ValueError, TypeError):
        whole = False
    if not whole:
        raise PartyError(
            f"a share from the {ROLES[sender]} is damaged: its checksum differs; start all again"
        )
    share, parts, place = libspu.Share(), [], 0
    for length in lengths:
        parts.append(body[place : place + length])
        place += length
    share.meta, share.share_chunks = parts[0], parts[1:]
    return share
