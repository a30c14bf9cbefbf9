"""One entry of a store as its readers see it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Location:
    """Where a tensor lies.

    Attributes:
        offset: in the file, bytes; a multiple of 4096.
        nbytes: without what fills it up to 4096.
    """

    path: Path
    offset: int
    nbytes: int
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Entry:
    """Named tensors in a file. Nothing is read before it is asked for; instances are cheap.

    Of the methods, those that give tensors or facts raise DamagedStoreError (with file and tensor) for bytes
    that are not what was written. A lease (`OpenDocument`, `Match`, `Writer`) must be held meanwhile.

    Attributes:
        kind: `block`, `index` or `state`.
        tokens: of a block its own, uint32 `[n]`; of an index or a state none.
        nbytes: of the file.
    """

    path: Path
    kind: str
    key: str
    parent: str
    tokens: np.ndarray
    nbytes: int
    digest: bytes

    @property
    def facts(self) -> dict[str, Any]:
        """The JSON facts it was stored with."""
        raise NotImplementedError

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tensors, in the order in which they were given."""
        raise NotImplementedError

    def locate(self, name: str) -> Location:
        """Where a tensor lies, for readers of their own; they call `check` for what they read.

        Raises:
            KeyError: no tensor of this name.
        """
        raise NotImplementedError

    def tensor(self, name: str) -> Tensor:
        """A tensor of the mapped file, verified whole. Writing to it changes the caller's copy only."""
        raise NotImplementedError

    def mapped(self, name: str) -> Tensor:
        """The same without verifying or reading anything; `check` what is used of it."""
        raise NotImplementedError

    def check(self, name: str, rows: np.ndarray | Tensor | None = None) -> None:
        """Verify rows of a tensor, as it is seen as `[-1, shape[-1]]`; all of them without `rows`.

        What was verified in this process is not read again. 4096 bytes are the unit.
        """
        raise NotImplementedError
