"""Keys that clients must carry, from a file that only its owner can read."""

from __future__ import annotations

import hashlib
import hmac
import os
import stat
from dataclasses import dataclass
from pathlib import Path

_LEAST = 16  # characters of a key
_MOST_BYTES = 1 << 16  # of the file


@dataclass(frozen=True)
class Keys:
    """Digests of keys; an empty one lets everybody in."""

    digests: tuple[bytes, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.digests)

    def allow(self, key: str) -> bool:
        """Whether it is one of the keys; takes the same time for every key of its length."""
        given = _digest(key)
        found = False
        for digest in self.digests:
            found |= hmac.compare_digest(digest, given)
        return found


def read_keys(file: str | Path) -> Keys:
    """The keys of a file, one a line; lines that begin with # are comments.

    Raises:
        ValueError: it cannot be read, others can read it, it holds no key, or one that is too short.
    """
    path = Path(file).expanduser()
    try:
        with path.open("rb") as opened:
            _check_mode(path, opened.fileno())
            data = opened.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(f"cannot read the key file {str(path)!r}: {error.strerror}") from error
    if len(data) > _MOST_BYTES:
        raise ValueError(f"the key file {str(path)!r} is larger than {_MOST_BYTES:,} bytes")
    lines = [line.strip() for line in data.decode("utf-8", errors="replace").splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ValueError(f"the key file {str(path)!r} holds no key; write one a line")
    for key in keys:
        _check_key(path, key)
    return Keys(tuple(_digest(key) for key in keys))


def _check_mode(path: Path, descriptor: int) -> None:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"the key file {str(path)!r} is not a regular file")
    if os.name == "posix" and status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise ValueError(
            f"the key file {str(path)!r} can be read or written by others (mode {mode:03o}); chmod 600 it"
        )


def _check_key(path: Path, key: str) -> None:
    if (
        len(key) < _LEAST
        or not key.isascii()
        or any(char.isspace() or not char.isprintable() for char in key)
    ):
        raise ValueError(
            f"the key file {str(path)!r} has a key that is not usable; give at least {_LEAST} ASCII "
            "characters without spaces, such as those of `openssl rand -hex 32`"
        )


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", errors="surrogateescape")).digest()
