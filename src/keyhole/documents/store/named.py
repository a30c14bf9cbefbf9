"""What is done to documents by their name."""

from __future__ import annotations

from dataclasses import replace

from keyhole.core.errors import StoreError
from keyhole.documents.store.backing import Backing
from keyhole.documents.store.beginning import check_ttl
from keyhole.documents.store.reading import unknown
from keyhole.documents.store.writing import is_written


def change(backing: Backing, name: str, pinned: bool | None, ttl: float | None) -> None:
    """See `Store.change`; of a finished and an unfinished document of the name it is the finished one."""
    if ttl != -1:
        check_ttl(ttl)
    with backing.change() as held:
        named = [row for row in held.documents if row.name == name]
        if not named:
            raise unknown(name, [row.name for row in held.documents])
        row = min(named, key=lambda row: (row.tail != row.goal, -row.used))
        if ttl != -1:
            row = replace(row, ttl=-1.0 if ttl is None else ttl)
        with held.held.changing():
            held.held.put(replace(row, pinned=row.pinned if pinned is None else pinned))


def remove(backing: Backing, name: str) -> int:
    """See `Store.remove`."""
    if is_written(backing.place.writers, name):
        raise StoreError(f"{name!r} is being added; wait for that, or stop it, then remove it")
    with backing.change() as held:
        named = [row for row in held.documents if row.name == name]
        if not named:
            raise unknown(name, [row.name for row in held.documents])
        return sum(row.nbytes for row in held.forget(named))
