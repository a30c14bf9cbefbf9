"""The file of an entry: see the package's docstring for the layout."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from keyhole.core.digest import raw
from keyhole.core.files import write_whole
from keyhole.core.tensorfile import DTYPE_NAMES
from keyhole.documents.store.pages import PAGE, filled

SUMS = "~sums"
PAD = "~pad."
_PIECE = 1 << 24  # bytes written at a time


@dataclass(frozen=True)
class EntryFile:
    """A file to be written, of which all but the bytes of the tensors is computed.

    Attributes:
        head: header and checksums, up to the first tensor.
        data: the bytes of each tensor.
    """

    head: bytes
    data: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        return len(self.head) + sum(filled(len(part)) for part in self.data)

    @property
    def digest(self) -> bytes:
        return digest(self.head)

    def write(self, path: Path) -> None:
        """Write it whole, under a temporary name first.

        Raises:
            OSError: it cannot be written, with the path; what was there before is unchanged.
        """
        write_whole(path, self._fill)

    def _fill(self, path: Path) -> None:
        with path.open("wb", buffering=0) as file:
            _put(file, self.head)
            for part in self.data:
                for piece in part.split(_PIECE):
                    _put(file, piece.numpy().data)
                _put(file, bytes(filled(len(part)) - len(part)))


def entry_file(facts: dict[str, Any], tensors: dict[str, Tensor]) -> EntryFile:
    """The file of `tensors` with facts about them.

    Raises:
        TypeError: a dtype that safetensors files do not know.
        ValueError: NaN or infinity; no tensors, or names that begin with `~` or `_`.
    """
    if not tensors:
        raise ValueError("an entry without tensors cannot be stored")
    for name, tensor in tensors.items():
        _check(name, tensor)
    data = tuple(raw(tensor).cpu() for tensor in tensors.values())
    sums = np.concatenate([page_sums(part.numpy()) for part in data])
    header = _header(facts, tensors, sums)
    return EntryFile(header + sums.tobytes().ljust(filled(sums.nbytes), b"\0"), data)


def page_sums(data: Any) -> np.ndarray:
    """The checksums, uint32, of the pages of contiguous bytes, which are filled up with zeros."""
    view, whole = memoryview(data), len(data) // PAGE * PAGE
    sums = [zlib.crc32(view[start : start + PAGE]) for start in range(0, whole, PAGE)]
    if whole < len(view):
        sums.append(zlib.crc32(bytes(view[whole:]).ljust(PAGE, b"\0")))
    return np.array(sums, "<u4")


def digest(head: bytes) -> bytes:
    return blake2b(head, digest_size=16).digest()


def _check(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in DTYPE_NAMES:
        raise TypeError(f"{name} is of {tensor.dtype}, which a safetensors file cannot hold")
    if not name or name[0] in "~_":
        raise ValueError(f"a tensor cannot be called {name!r}: such names are the store's own")
    if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
        raise ValueError(f"{name} holds NaN or infinity, which is not stored; read the document again")


def _header(facts: dict[str, Any], tensors: dict[str, Tensor], sums: np.ndarray) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"keyhole": json.dumps(facts)}}
    at = 0

    def place(name: str, dtype: str, shape: list[int], nbytes: int) -> None:
        nonlocal at
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + nbytes]}
        at += nbytes
        if rest := filled(at) - at:
            entries[f"{PAD}{len(entries)}"] = {
                "dtype": "U8",
                "shape": [rest],
                "data_offsets": [at, at + rest],
            }
            at += rest

    place(SUMS, "U32", [len(sums)], sums.nbytes)
    for name, tensor in tensors.items():
        place(name, DTYPE_NAMES[tensor.dtype], list(tensor.shape), tensor.nbytes)
    text = json.dumps(entries).encode()
    text = text.ljust(filled(8 + len(text)) - 8)
    return struct.pack("<Q", len(text)) + text


def _put(file: Any, data: bytes | memoryview) -> None:
    """Write all of it, which a raw file need not do at once."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
