"""Indexes of methods over whole documents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from keyhole.core.errors import StoreError
from keyhole.documents.store.backing import Backing
from keyhole.documents.store.entry import Entry
from keyhole.documents.store.keys import index_key
from keyhole.documents.store.leases import leased
from keyhole.documents.store.making import made

if TYPE_CHECKING:
    from torch import Tensor


def add_index(
    backing: Backing,
    tail: str,
    method: str,
    version: str,
    tensors: dict[str, Tensor],
    seconds: float | None,
    facts: dict[str, Any] | None,
) -> Entry:
    """Store an index behind the entry `tail`, which the caller has leased; see `Store.put_index`."""
    if "\n" in method:
        raise ValueError(f"the method of an index is one line, not {method!r}")
    none = np.zeros(0, np.uint32)
    key = index_key(tail, method, version)
    kind = "note" if seconds is None else "index"
    file, row = made(kind, key, tail, none, tensors, seconds or 0.0, facts, tag=f"{method}\n{version}")
    with backing.change() as change:
        if change.held.entry(tail) is None:
            raise StoreError("an index belongs behind a stored document; this one is not stored any more")
        found = change.add(file, row, lambda: None)
        older = [
            each
            for each in change.tree.behind(tail)
            if each.tag.startswith(f"{method}\n") and each.key != key
        ]
        if older and leased(backing.place.leases)[tail] == 1:  # else others may be reading it
            change.drop(older)
    return backing.entry(found)
