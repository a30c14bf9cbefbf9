"""Files that are there whole or not at all: written beside their place, synced, then renamed."""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL = ".partial-"  # in the names of files that are being written
_POLL = 0.01  # seconds


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, with the same suffix, then move it there.

    Whoever reads `path` sees the old content or the new, also after a crash of the process or the machine.

    Raises:
        OSError: it could not be written, with the path; what was there before is unchanged.
    """
    with naming(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}{PARTIAL}", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            sync(temporary)
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_whole` of a text; its directory is made where it is missing."""
    with naming(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def sync(path: Path) -> None:
    """Wait until a file, or the list of a directory's files, is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no directories
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let the OSErrors of a block name `path`, whichever file of its making they came from."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename == str(path):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


@contextmanager
def locked(path: Path, *, patience: float) -> Iterator[None]:
    """Hold the lock file `path`, which other processes and threads respect; it ends with its process.

    Raises:
        TimeoutError: somebody else held it for `patience` seconds.
    """
    handle = _lock_handle(path)
    try:
        deadline = time.monotonic() + patience
        while not _try_lock(handle):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"another process has been writing to {path.parent} for {patience:g} s; "
                    "wait for it, or give another directory"
                )
            time.sleep(_POLL * random.random())
        yield
    finally:
        release(handle)


def hold(path: Path) -> int | None:
    """A handle that holds the lock file `path` until `release` or the end of the process; None: it is held.

    Locks respect those of other handles, of this process too.
    """
    handle = _lock_handle(path)
    if _try_lock(handle):
        return handle
    os.close(handle)
    return None


def release(handle: int) -> None:
    """End a lock."""
    _unlock(handle)
    os.close(handle)


def _lock_handle(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)


def _unlock(handle: int) -> None:
    """End the lock here: a process forked meanwhile has the handle too, and would keep it."""
    if os.name != "nt":
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_UN)


def _try_lock(handle: int) -> bool:
    with suppress(BlockingIOError, PermissionError):
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
