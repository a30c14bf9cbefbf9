"""Entries from tensors."""

from __future__ import annotations

import math
from time import time
from typing import TYPE_CHECKING, Any

import numpy as np

from keyhole.documents.store.pages import FORMAT
from keyhole.documents.store.rows import EntryRow

if TYPE_CHECKING:
    from torch import Tensor

    from keyhole.documents.store.entry_file import EntryFile


def made(
    kind: str,
    key: str,
    parent: str,
    ids: np.ndarray,
    tensors: dict[str, Tensor],
    seconds: float,
    facts: dict[str, Any] | None,
    *,
    tag: str = "",
    count: int | None = None,
) -> tuple[EntryFile, EntryRow]:
    """The file of an entry and its record; `count` tokens, those of `ids` by default.

    Raises:
        ValueError: tensors that cannot be stored; seconds that are negative or not finite.
    """
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"seconds must be finite and at least 0, not {seconds}")
    from keyhole.documents.store.entry_file import (
        entry_file,
    )  # torch is imported only where there are tensors

    about = {"format": FORMAT, "kind": kind, "key": key, "parent": parent, "tag": tag}
    file = entry_file({**about, "tokens": ids.tolist(), "facts": facts or {}}, tensors)
    row = EntryRow(
        key=key,
        kind=kind,
        parent=parent,
        tokens=ids.astype("<u4").tobytes(),
        count=len(ids) if count is None else count,
        tag=tag,
        nbytes=file.nbytes,
        head=len(file.head),
        digest=file.digest,
        seconds=float(seconds),
        frequency=1,
        clock=0.0,
        used=time(),
    )
    return file, row
