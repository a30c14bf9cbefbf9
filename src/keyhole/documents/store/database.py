"""The store's metadata: SQLite whose rows are sealed, each and all together."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from keyhole.core.errors import DamagedStoreError
from keyhole.core.files import PARTIAL, sync
from keyhole.documents.store.pages import FORMAT
from keyhole.documents.store.rows import ClockRow, DocumentRow, EntryRow
from keyhole.documents.store.schema import MODULUS, TABLES, schema, seal

NAME = "store.sqlite"
_Row = TypeVar("_Row", EntryRow, DocumentRow, ClockRow)
_PATIENCE = 60.0  # seconds for another process's transaction
_FULL = 1 << 16  # bytes free below which an error of writing is that of a full disk
_OUTSIDE = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
_WAY_OUT = "remove that file to begin anew, without the documents"


class Database:
    """The file. Every call opens it anew: nothing is shared between threads, or kept over a fork."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def connected(self) -> Iterator[Connection]:
        """Read what was last committed; changes are made in `Connection.changing`.

        Raises:
            DamagedStoreError: the file is not what was written.
            OSError: it cannot be read or written; nothing was changed.
        """
        with self._naming(), closing(self._connect()) as db:
            yield Connection(self, db)

    def create(self) -> None:
        """Make the file with its tables, whole or not at all."""
        new = Database(self.path.with_name(f".{self.path.stem}{PARTIAL}new{self.path.suffix}"))
        new.remove()
        new._create()
        self.remove()
        new.path.replace(self.path)
        sync(self.path.parent)

    def _create(self) -> None:
        with self.connected() as held:
            held.db.execute("PRAGMA auto_vacuum = FULL")
            held.db.execute("PRAGMA journal_mode = WAL")
            with held.changing():
                for statement in schema():
                    held.db.execute(statement)
                for row in TABLES:
                    held.db.execute("INSERT INTO sums VALUES (?, 0, 0)", (row.table,))
                held.put(ClockRow(0, 0.0))
                held.db.execute(f"PRAGMA user_version = {FORMAT}")

    def remove(self) -> None:
        """Remove the file and those beside it. Only while nobody else has it open."""
        for end in ("-wal", "-shm", ""):
            self.path.with_name(self.path.name + end).unlink(missing_ok=True)

    def check(self) -> None:
        """Check that this is a whole database of this format.

        Raises:
            DamagedStoreError: it is not; what to do about it.
        """
        with self.connected() as held:
            found = held.db.execute("PRAGMA user_version").fetchone()[0]
            if found != FORMAT:
                raise DamagedStoreError(f"{self.path} is of format {found}, not {FORMAT}; {_WAY_OUT}")
            query = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL"
            if sorted(sql for (sql,) in held.db.execute(query)) != sorted(schema()):
                raise self.damaged("its tables are not those that were made")
            problems = held.db.execute("PRAGMA integrity_check(1)").fetchone()[0]
            if problems != "ok":
                raise self.damaged(problems)
            held.check_sums()

    def damaged(self, what: str) -> DamagedStoreError:
        return DamagedStoreError(f"{self.path} is damaged: {what}; {_WAY_OUT}")

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA wal_autocheckpoint = 1")
        return db

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """SQLite's errors as those of the store."""
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter from messages that quote the file
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
            if code == sqlite3.SQLITE_BUSY:
                raise TimeoutError(f"{self.path} has been busy for {_PATIENCE:g} s; try again") from error
            if code not in _OUTSIDE:
                raise self.damaged(str(error)) from error
            full = code == sqlite3.SQLITE_FULL or shutil.disk_usage(self.path.parent).free < _FULL
            number = errno.ENOSPC if full else errno.EIO
            raise OSError(number, f"{os.strerror(number)} ({error})", str(self.path)) from error


class Connection:
    """One open database."""

    def __init__(self, database: Database, db: sqlite3.Connection) -> None:
        self.database, self.db = database, db

    @contextmanager
    def reading(self) -> Iterator[None]:
        """All that is read in the block is of one time."""
        self.db.execute("BEGIN")
        try:
            yield
        finally:
            self.db.execute("COMMIT")

    @contextmanager
    def changing(self) -> Iterator[None]:
        """All changes of the block, or none."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.db.execute("COMMIT")
        finally:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")

    def put(self, row: EntryRow | DocumentRow | ClockRow) -> None:
        """Add a row, or replace the one of the same key."""
        names, values = row.names(), row.values()
        columns = ", ".join((*names, "seal"))
        marks = ", ".join("?" * (len(names) + 1))
        updates = ", ".join(f"{name} = excluded.{name}" for name in (*names, "seal"))
        self.db.execute(
            f"INSERT INTO {row.table} ({columns}) VALUES ({marks}) "
            f"ON CONFLICT ({', '.join(row.keys)}) DO UPDATE SET {updates}",
            (*values, seal(row.table, values)),
        )

    def drop(self, row: EntryRow | DocumentRow) -> None:
        where = " AND ".join(f"{key} = ?" for key in row.keys)
        self.db.execute(f"DELETE FROM {row.table} WHERE {where}", [getattr(row, key) for key in row.keys])

    def rows(self, kind: type[_Row], /, **wanted: Any) -> list[_Row]:
        """The rows whose columns have these values.

        Raises:
            DamagedStoreError: one is not what was written.
        """
        where = " AND ".join(f"{name} = ?" for name in wanted)
        query = f"SELECT {', '.join((*kind.names(), 'seal'))} FROM {kind.table}" + (
            f" WHERE {where}" if where else ""
        )
        found = []
        for *values, mark in self.db.execute(query, list(wanted.values())):
            row = kind(*values)
            if mark != seal(kind.table, tuple(values)):
                raise self.database.damaged(f"a row of {kind.table} is not what was written")
            if any(getattr(row, name) != value for name, value in wanted.items()):
                raise self.database.damaged(f"an index of {kind.table} does not fit it")
            found.append(row)
        return found

    def entry(self, key: str) -> EntryRow | None:
        return next(iter(self.rows(EntryRow, key=key)), None)

    @property
    def clock(self) -> float:
        """Of the eviction."""
        return self.rows(ClockRow)[0].clock

    def check_sums(self) -> None:
        """Check that no row is missing or changed, without reading more than their seals."""
        for row in TABLES:
            kept = self.db.execute("SELECT rows, total FROM sums WHERE name = ?", (row.table,)).fetchone()
            query = f"SELECT count(*), coalesce(sum(seal), 0) % {MODULUS} FROM {row.table}"
            if kept != self.db.execute(query).fetchone():
                raise self.database.damaged(f"rows of {row.table} are missing or changed")
