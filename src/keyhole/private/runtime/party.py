"""One party of a computation: shares in, programs run, and one value opened to the client."""

from __future__ import annotations

# pyright: reportMissingImports=false
import hashlib
from typing import Any

import numpy as np
from spu import libspu
from spu.api import Io, Runtime

from keyhole.private.runtime.links import (
    CLIENT,
    ROLES,
    PartyError,
    agree,
    packed,
    reporting,
    unpacked,
)
from keyhole.private.runtime.program import Program
from keyhole.private.runtime.protocols import Protocol

_SECRET = libspu.Visibility.VIS_SECRET


class Party:
    """A runtime on a link. Every method is called by all parties, in the same order.

    Attributes:
        shared: bytes of shares that this party sent to the others.
    """

    def __init__(
        self, link: libspu.link.Context, config: libspu.RuntimeConfig, protocol: Protocol, timeout: float
    ) -> None:
        self.link, self.protocol, self.timeout = link, protocol, timeout
        self.rank, self.count, self.shared = link.rank, protocol.parties, 0
        self._io = Io(protocol.parties, config)
        with self._doing("connecting"):
            self._runtime = Runtime(link, config)
        self._agreed: set[str] = set()

    def agree(self, what: dict[str, str]) -> None:
        """As `links.agree`."""
        with self._doing("comparing versions and settings"):
            agree(self.link, what)

    def share(self, name: str, value: np.ndarray | None, owner: int) -> None:
        """Put a value that `owner` has, and the others pass None for, into shares under a name."""
        with self._doing(f"sharing {name}"):
            if self.rank != owner:
                data = self.link.recv(owner)
                self._runtime.set_var(name, unpacked(data, owner))
                return
            assert value is not None
            shares = self._io.make_shares(value, _SECRET)
            for rank, share in enumerate(shares):
                if rank == owner:
                    self._runtime.set_var(name, share)
                else:
                    data = packed(share)
                    self.shared += len(data)
                    self.link.send(rank, data)

    def run(self, program: Program) -> None:
        """Run a program on shares that have the names of its inputs; its outputs stay in shares.

        Raises:
            PartyError: a party is gone, or has another program.
        """
        digest = hashlib.sha256(program.executable.code).hexdigest()
        if digest not in self._agreed:
            self.agree({f"the program {program.name!r}": digest})
            self._agreed.add(digest)
        with self._doing(f"running {program.name}"):
            self._runtime.run(program.executable)

    def open(self, name: str) -> np.ndarray | None:
        """Open a value to the client alone; None at the others.

        Raises:
            PartyError: shares do not fit each other.
        """
        share = self._runtime.get_var(name)
        with self._doing(f"opening {name}"):
            if self.rank != CLIENT:
                data = packed(share)
                self.shared += len(data)
                self.link.send(CLIENT, data)
                return None
            others = [unpacked(self.link.recv(rank), rank) for rank in range(1, self.count)]
        shares = [share, *others]
        _check_replicas(name, shares)
        return np.asarray(self._io.reconstruct(shares))

    def _doing(self, what: str) -> Any:
        return reporting(what, self.rank, self.timeout)


def _check_replicas(name: str, shares: list[libspu.Share]) -> None:
    """Each of three addends is held by two parties of ABY3, who must have the same."""
    if not all(b"aby3.AShr" in share.meta for share in shares):
        return
    pairs = [_addends(share) for share in shares]
    for rank, pair in enumerate(pairs):
        following = (rank + 1) % len(pairs)
        if not np.array_equal(pair[:, 1], pairs[following][:, 0]):
            raise PartyError(
                f"shares of {name!r} from the {ROLES[rank]} and the {ROLES[following]} do not fit "
                f"each other: one "
                "of them is wrong; nothing was opened, start all again"
            )


def _addends(share: libspu.Share) -> np.ndarray:
    """Both addends of each number, `[X, 2]`."""
    contents = []
    for data in share.share_chunks:
        chunk = libspu.ValueChunk()
        chunk.ParseFromString(data)
        contents.append(bytes(chunk.content))
    return np.frombuffer(b"".join(contents), np.uint64).reshape(-1, 2)
