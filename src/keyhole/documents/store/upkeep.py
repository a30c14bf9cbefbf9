"""`gc` and `verify`, and what they say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from keyhole.core.errors import DamagedStoreError
from keyhole.documents.store.backing import Backing
from keyhole.documents.store.keys import block_key
from keyhole.documents.store.pages import FORMAT
from keyhole.documents.store.records import Document, described
from keyhole.documents.store.rows import DocumentRow, EntryRow
from keyhole.documents.store.tree import Tree

Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Collected:
    """What `gc` removed: files, bytes, and the names of documents (expired, or not usable)."""

    files: int
    nbytes: int
    documents: tuple[str, ...]


@dataclass(frozen=True)
class Damage:
    """Something that is not what was written.

    Attributes:
        path: the file.
        what: in words.
        documents: names of those that cannot be read because of it.
    """

    path: Path
    what: str
    documents: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What `verify` found; `garbage` counts bytes that `gc` removes, which is no damage."""

    damaged: tuple[Damage, ...]
    entries: int
    nbytes: int
    garbage: int

    @property
    def clean(self) -> bool:
        return not self.damaged


def collect(backing: Backing, usable: Callable[[Document], bool] | None) -> Collected:
    """See `Store.gc`."""
    with backing.change() as change:
        named = []
        if usable is not None:
            rows = {(row.name, row.goal): row for row in change.documents}
            listed = described(change.documents, change.tree)
            named = [rows[each.name, each.goal] for each in listed if not usable(each)]
        gone = change.forget(named)
        swept = change.sweep()
    return Collected(
        files=len(gone) + swept.files,
        nbytes=sum(row.nbytes for row in gone) + swept.nbytes,
        documents=tuple(sorted({*swept.expired, *(row.name for row in named)})),
    )


def verify(backing: Backing, progress: Progress | None, *, repair: bool) -> Report:
    """See `Store.verify`."""
    backing.database.check()
    with backing.change() as change:
        tree, documents = change.tree, change.documents
        garbage = sum(size for _, size in change.garbage())
    for document in documents:
        backing.chain(document, tree)
    total, done = sum(row.nbytes for row in tree.entries.values()), 0
    damaged: dict[str, str] = {}
    for row in tree.entries.values():
        what = _problem(backing, row)
        if what is not None:
            damaged[row.key] = what
        done += row.nbytes
        if progress is not None:
            progress(done, total)
    found = tuple(_damage(backing, tree, documents, key, what) for key, what in damaged.items())
    if repair and damaged:
        with backing.change() as change:
            keys = [key for key in damaged if key in change.tree.entries]
            change.drop({row.key: row for key in keys for row in change.tree.below(key)}.values())
    return Report(found, len(tree.entries), total, garbage)


def _problem(backing: Backing, row: EntryRow) -> str | None:
    """What is wrong with an entry; None where nothing is, or it was evicted meanwhile."""
    try:
        entry = backing.entry(row)
        about = entry.check_all()
        if about["format"] != FORMAT or (about["key"], about["parent"]) != (row.key, row.parent):
            return f"{entry.path} holds another entry"
        if row.kind == "block" and block_key(row.parent, entry.tokens) != row.key:
            return f"{entry.path}: its tokens do not give its key"
    except (DamagedStoreError, FileNotFoundError) as error:
        with backing.database.connected() as held:
            return str(error) if held.entry(row.key) else None
    return None


def _damage(backing: Backing, tree: Tree, documents: list[DocumentRow], key: str, what: str) -> Damage:
    names = {row.name for row in documents if key in tree.needed([row.tail])}
    row = tree.entries[key]
    return Damage(backing.place.path(row.kind, key), what, tuple(sorted(names)))
