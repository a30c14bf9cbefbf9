"""Tensors in a safetensors file whose every byte has a digest.

Layout: the length of the header (8 bytes, little-endian), the header (JSON, filled up with spaces to a
multiple of 8 bytes), then the tensors without gaps, those of the widest numbers first.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from keyhole.core.digest import digest, raw
from keyhole.core.errors import SavedStateError

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_PIECE = 64 << 20  # bytes written at a time


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> dict[str, str]:
    """Write a new file and wait until it is on the disk; returns the digests that `read_tensors` wants.

    Raises:
        TypeError: a dtype that such files do not know.
        OSError: it cannot be written.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPE_NAMES:
            raise TypeError(f"{name} is of {tensor.dtype}, which a safetensors file cannot hold")
    ordered = dict(sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])))
    header, digests = _header(ordered), {}
    with path.open("xb") as file:
        file.write(header)
        for name, tensor in ordered.items():
            digests[name] = digest(tensor)
            for piece in raw(tensor).split(_PIECE):
                file.write(piece.cpu().numpy().data)
        file.flush()
        os.fsync(file.fileno())
    return {"": hashlib.sha256(header).hexdigest(), **digests}


def read_tensors(path: Path, digests: dict[str, str]) -> dict[str, Tensor]:
    """The tensors of a file, in memory of their own.

    Raises:
        FileNotFoundError: there is no such file.
        SavedStateError: it is not what was written.
    """
    with path.open("rb") as file:
        header = _read_header(path, file, digests.get("", ""))
        if header.keys() != digests.keys() - {""}:
            raise SavedStateError(f"{path} is damaged: it does not hold the tensors it was written with")
        tensors = {}
        for name, entry in header.items():
            tensors[name] = _read_tensor(file, entry)
            if tensors[name] is None or digest(tensors[name]) != digests[name]:
                raise SavedStateError(f"{path} is damaged: {name} does not match its digest")
        if file.read(1):
            raise SavedStateError(f"{path} is damaged: it is longer than it was written")
    return tensors


def _header(tensors: dict[str, Tensor]) -> bytes:
    entries, at = {}, 0
    for name, tensor in tensors.items():
        offsets = [at, at := at + tensor.nbytes]
        entries[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": offsets,
        }
    text = json.dumps(entries).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    return struct.pack("<Q", len(text)) + text


def _read_header(path: Path, file: BinaryIO, expected: str) -> dict[str, Any]:
    """The entries of the tensors, in the order in which they lie."""
    size = os.fstat(file.fileno()).st_size
    length = file.read(8)
    count = struct.unpack("<Q", length)[0] if len(length) == 8 else size
    text = file.read(count) if count <= size else b""
    if hashlib.sha256(length + text).hexdigest() != expected:
        raise SavedStateError(f"{path} is damaged: its header does not match its digest")
    return json.loads(text)


def _read_tensor(file: BinaryIO, entry: dict[str, Any]) -> Tensor | None:
    """The next tensor; None where the file ends before it does."""
    tensor = torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]])
    return tensor if file.readinto(raw(tensor).numpy().data) == tensor.nbytes else None  # type: ignore[attr-defined]
