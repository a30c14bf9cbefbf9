"""One entry of a store as its readers see it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from keyhole.documents.store.mapped import MappedFile


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
        kind: `block`, `index`, `note` or `state`.
        tokens: of a block its own, uint32 `[n]`; of other kinds none.
        nbytes: of the file; the first `head` of them are header and checksums, with `digest`.
    """

    path: Path
    kind: str
    key: str
    parent: str
    tokens: np.ndarray = field(compare=False)
    nbytes: int
    head: int
    digest: bytes

    @property
    def facts(self) -> dict[str, Any]:
        """The JSON facts it was stored with."""
        return self._file.header["facts"]["facts"]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the tensors, in the order in which they were given."""
        return tuple(self._file.header["tensors"])

    def locate(self, name: str) -> Location:
        """Where a tensor lies, for readers of their own; they call `check` for what they read.

        Raises:
            KeyError: no tensor of this name.
        """
        start, stop, shape, dtype = self._file.locate(name)
        return Location(self.path, start, stop - start, shape, dtype)

    def tensor(self, name: str) -> Tensor:
        """A tensor of the mapped file, verified whole. It must not be written to."""
        self.check(name)
        return self.mapped(name)

    def mapped(self, name: str) -> Tensor:
        """The same without verifying or reading anything; `check` what is used of it."""
        return self._file.tensor(name)

    def check(self, name: str, rows: np.ndarray | Tensor | None = None) -> None:
        """Verify rows of a tensor, as it is seen as `[-1, shape[-1]]`; all of them without `rows`.

        What was verified in this process is not read again. 4096 bytes are the unit.

        Raises:
            IndexError: rows that the tensor does not have.
        """
        self._file.check(name, None if rows is None else np.asarray(rows, np.int64).ravel())

    def check_all(self) -> dict[str, Any]:
        """Read and verify the whole file, also what was verified before; all that it says of itself."""
        return self._file.check_all()

    @cached_property
    def _file(self) -> MappedFile:
        from keyhole.documents.store.mapped import mapped_file  # torch is imported only for tensors

        return mapped_file(self.path, self.nbytes, self.head, self.digest)
