"""The directory of a store: paths, rights, what lies in it and how much that is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from keyhole.core.files import PARTIAL, locked
from keyhole.documents.store.database import NAME
from keyhole.documents.store.entry_file import filled

KINDS = {"block": "blocks", "index": "indexes", "state": "states"}
SUFFIX = ".safetensors"
_PATIENCE = 120.0  # seconds for what others do to the store, eviction and gc included
_BALLAST = 1 << 18  # bytes kept for the metadata, so that removing works on a full disk
_SPARE = 1 << 20  # bytes free below which the disk counts as full


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
            yield

    @contextmanager
    def freeing(self) -> Iterator[None]:
        """`changing`, which also works where the disk is full."""
        with self.changing():
            ballast = self.root / "ballast"
            if _free(self.root) < _SPARE:
                ballast.unlink(missing_ok=True)
            try:
                yield
            finally:
                self.fill_ballast()

    def fill_ballast(self) -> None:
        """Keep some bytes for a full disk; if there are none, do without."""
        ballast = self.root / "ballast"
        if not ballast.exists() and _free(self.root) >= _SPARE + _BALLAST:
            with suppress(OSError):
                ballast.write_bytes(os.urandom(_BALLAST))

    def used(self) -> int:
        """Bytes of everything here, in whole pages."""
        return sum(filled(status.st_size) for _, status in self._walk(self.root))

    def metadata(self) -> int:
        """Bytes of SQLite's files."""
        paths = (self.root / f"{NAME}{end}" for end in ("", "-wal", "-shm"))
        return sum(filled(path.stat().st_size) for path in paths if path.exists())

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
    """Free on the disk of the nearest directory that is there."""
    while not path.exists():
        path = path.parent
    return _free(path)


def _free(path: Path) -> int:
    import shutil

    return shutil.disk_usage(path).free
