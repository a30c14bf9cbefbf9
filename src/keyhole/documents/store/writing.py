"""Locks of those who add: one at a time under a name, and one at a time the same tokens."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from keyhole.core.files import hold, release

_POLL = 0.25  # seconds


class WriterLock:
    """A lock file that is there while somebody holds it. It ends with its process."""

    def __init__(self, directory: Path, what: str) -> None:
        self.path = _path(directory, what)
        self._handle: int | None = None
        self._process = os.getpid()

    def try_acquire(self) -> bool:
        handle = hold(self.path)
        if handle is not None and not _is(handle, self.path):
            release(handle)  # of the one before, who removed the file
            return False
        self._handle = handle
        return handle is not None

    def acquire(self, waiting: Callable[[], object]) -> None:
        """Wait for it; `waiting` is called meanwhile, and may raise."""
        while not self.try_acquire():
            waiting()
            time.sleep(_POLL)

    def release(self) -> None:
        if self._handle is not None and os.getpid() == self._process:
            self.path.unlink(missing_ok=True)
            release(self._handle)
        self._handle = None


def is_written(directory: Path, name: str) -> bool:
    """Whether somebody adds under this name."""
    path = _path(directory, name_lock(name))
    if not path.exists():
        return False
    handle = hold(path)
    if handle is None:
        return True
    path.unlink(missing_ok=True)  # of a process that ended
    release(handle)
    return False


def name_lock(name: str) -> str:
    return f"name {name}"


def content_lock(goal: str) -> str:
    return f"content {goal}"


def _path(directory: Path, what: str) -> Path:
    return directory / blake2b(what.encode(), digest_size=20).hexdigest()


def _is(handle: int, path: Path) -> bool:
    """Whether a handle is of the file that has this name now."""
    with suppress(FileNotFoundError):
        return os.fstat(handle).st_ino == path.stat().st_ino
    return False
