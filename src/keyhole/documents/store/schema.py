"""The tables of the store's metadata, whose rows are sealed, each and all together."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

from keyhole.documents.store.rows import ClockRow, DocumentRow, EntryRow

TABLES = (EntryRow, DocumentRow, ClockRow)
MODULUS = 1 << 40  # of seals and their sums, so that SQL can add them


def seal(table: str, values: tuple[Any, ...]) -> int:
    """A digest of a row below `MODULUS`."""
    state = blake2b(digest_size=5)
    for value in (table, *values):
        data = value if isinstance(value, bytes) else repr(value).encode()
        state.update(len(data).to_bytes(8, "little") + data)
    return int.from_bytes(state.digest(), "little")


def schema() -> list[str]:
    """The statements that make the tables, and keep count and sum of their rows' seals."""
    made = ["CREATE TABLE sums (name TEXT PRIMARY KEY, rows INTEGER NOT NULL, total INTEGER NOT NULL)"]
    for row in TABLES:
        columns = ", ".join(f"{name} {kind}" for name, kind in (*row.columns(), ("seal", "INTEGER NOT NULL")))
        made.append(f"CREATE TABLE {row.table} ({columns}, PRIMARY KEY ({', '.join(row.keys)}))")
        for event, rows, total in (
            ("INSERT", "rows + 1", "total + new.seal"),
            ("DELETE", "rows - 1", f"total - old.seal + {MODULUS}"),
            ("UPDATE", "rows", f"total - old.seal + {MODULUS} + new.seal"),
        ):
            made.append(
                f"CREATE TRIGGER {row.table}_{event.lower()} AFTER {event} ON {row.table} BEGIN UPDATE sums "
                f"SET rows = {rows}, total = ({total}) % {MODULUS} WHERE name = '{row.table}'; END"
            )
    made.append("CREATE INDEX entries_parent ON entries (parent)")
    return made
