"""The directory of a store: paths, rights, what lies in it and how much that is."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from keyhole.core.files import PARTIAL, locked
from keyhole.documents.store.database import NAME
from keyhole.documents.store.pages import filled

KINDS = {"block": "blocks", "index": "indexes", "note": "notes", "state": "states"}
SUFFIX = ".safetensors"
_PATIENCE = 120.0  # seconds for what others do to the store, eviction and gc included
BALLAST = 1 << 18  # bytes kept for the metadata, so that removing works on a full disk
SPARE = 1 << 20  # bytes free below which a disk counts as full


class Place:
    """A directory. What is written to it is written while `changing`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def make(self) -> None:
        """Make the directories, for their owner alone.

        Raises:
            ValueError: a file, or somebody else's directory.
        """
        if self.root.exists() and not self.root.is_dir():
            raise ValueError(f"{str(self.root)!r} is a file; give a directory for the store of documents")
        for name in (".", *KINDS.values(), "leases", "writers"):
            path = self.root / name
            path.mkdir(parents=name == ".", exist_ok=True, mode=0o700)
            self._own(path)

    def _own(self, path: Path) -> None:
        if os.name == "nt":
            return  # rights are those of the user's profile
        status = path.stat()
        if status.st_uid != os.geteuid():
            raise ValueError(
                f"{str(path)!r} belongs to another user; documents are kept in a directory of one's own"
            )
        if status.st_mode & 0o077:
            path.chmod(0o700)

    def path(self, kind: str, key: str) -> Path:
        """Of an entry."""
        return self.root / KINDS[kind] / key[:2] / f"{key}{SUFFIX}"

    @property
    def leases(self) -> Path:
        return self.root / "leases"

    @property
    def writers(self) -> Path:
        return self.root / "writers"

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Be the only one who changes the store.

        Raises:
            TimeoutError: somebody else has been changing it for two minutes.
        """
        with locked(self.root / "lock", patience=_PATIENCE):
            self.relieve()
            try:
                yield
            finally:
                self._fill_ballast()

    def relieve(self) -> None:
        """On a full disk, give the ballast up, so that the metadata can be opened, and entries removed."""
        if free_bytes(self.root) < SPARE:
            self._ballast.unlink(missing_ok=True)

    def _fill_ballast(self) -> None:
        if not self._ballast.exists() and free_bytes(self.root) >= SPARE + BALLAST:
            with suppress(OSError):  # then there is none
                self._ballast.write_bytes(os.urandom(BALLAST))

    @property
    def _ballast(self) -> Path:
        return self.root / "ballast"

    def check_free(self, nbytes: int) -> None:
        """Check that so many bytes can be written, and the metadata after that.

        Raises:
            OSError: they cannot.
        """
        free = free_bytes(self.root)
        if free < nbytes + SPARE:
            what = f"{os.strerror(errno.ENOSPC)} ({free:,} bytes free; {nbytes + SPARE:,} are needed)"
            raise OSError(errno.ENOSPC, what, str(self.root))

    def used(self) -> int:
        """Bytes of everything here, in whole pages."""
        return sum(filled(status.st_size) for _, status in self._walk(self.root))

    def metadata(self) -> int:
        """Bytes of SQLite's files, and of the ballast where it is missing."""
        paths = (self.root / f"{NAME}{end}" for end in ("", "-wal", "-shm"))
        missing = 0 if self._ballast.exists() else BALLAST
        return missing + sum(filled(path.stat().st_size) for path in paths if path.exists())

    def files(self) -> Iterator[tuple[Path, int]]:
        """What lies where entries do, with bytes; temporary files too. To be called while `changing`."""
        for name in KINDS.values():
            for path, status in self._walk(self.root / name):
                if not path.is_dir():
                    yield path, filled(status.st_size)
        for path in self.root.iterdir():
            if PARTIAL in path.name:
                yield path, filled(path.stat().st_size)

    def _walk(self, directory: Path) -> Iterator[tuple[Path, os.stat_result]]:
        with suppress(FileNotFoundError):
            yield directory, directory.stat()
            with os.scandir(directory) as found:
                for item in found:
                    if item.is_dir(follow_symlinks=False):
                        yield from self._walk(Path(item.path))
                    else:
                        with suppress(FileNotFoundError):  # gone meanwhile
                            yield Path(item.path), item.stat(follow_symlinks=False)


def free_bytes(path: Path) -> int:
    """Free on a directory's disk."""
    return shutil.disk_usage(path).free
