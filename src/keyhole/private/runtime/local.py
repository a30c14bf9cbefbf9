"""All parties as threads of one process, on links in memory: for tests and for counting bytes."""

from __future__ import annotations

# pyright: reportMissingImports=false
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import TypeVar

from spu import libspu

from keyhole.private.runtime.links import description
from keyhole.private.runtime.party import Party
from keyhole.private.runtime.protocols import Protocol, config_of

T = TypeVar("T")
_NAMES = count()


def together(
    protocol: Protocol,
    part: Callable[[Party], T],
    *,
    profile: bool = False,
    parallel: bool = False,
    timeout: float = 60,
) -> list[T]:
    """What `part` returns at each party, in order of rank; the first error is raised."""
    name = f"local{next(_NAMES)}"
    addresses = [f"{name}.{rank}" for rank in range(protocol.parties)]

    def play(rank: int) -> T:
        link = libspu.link.create_mem(description(addresses, timeout, name), rank)
        return part(Party(link, config_of(protocol, profile=profile, parallel=parallel), protocol, timeout))

    with ThreadPoolExecutor(protocol.parties) as pool:
        return [made.result() for made in [pool.submit(play, rank) for rank in range(protocol.parties)]]
