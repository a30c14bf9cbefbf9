"""Keys of entries: hashes over all that their tensors depend on."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

BLOCK = 256  # tokens of a whole block
_BYTES = 20


def block_keys(tokens: Sequence[int] | np.ndarray, fingerprint: str) -> list[str]:
    """The keys of the blocks of a document, in order; the last block may hold fewer than `BLOCK` tokens."""
    ids = token_array(tokens)
    keys: list[str] = []
    parent = root_key(fingerprint)
    for start in range(0, len(ids), BLOCK):
        parent = block_key(parent, ids[start : start + BLOCK])
        keys.append(parent)
    return keys


def block_key(parent: str, ids: np.ndarray) -> str:
    """The key of a block of `ids` behind the block `parent`, or behind `root_key(fingerprint)`."""
    return _hash("block", parent, ids.astype("<u4").tobytes())


def root_key(fingerprint: str) -> str:
    """What stands for the parent of the first block; there is no entry of this key."""
    return _hash("root", fingerprint)


def index_key(tail: str, method: str, version: str) -> str:
    """The key of the index of a method over the blocks that end at `tail`."""
    return _hash("index", tail, method, version)


def state_key(tokens: Sequence[int] | np.ndarray, fingerprint: str) -> str:
    """The key of a whole state after these tokens."""
    return _hash("state", root_key(fingerprint), token_array(tokens).astype("<u4").tobytes())


def token_array(tokens: Sequence[int] | np.ndarray) -> np.ndarray:
    """Token ids as uint32 `[n]`.

    Raises:
        ValueError: there are none, or some are below 0 or beyond 2^32 - 1.
        TypeError: they are not integers in one dimension.
    """
    ids = np.asarray(tokens)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise TypeError(f"token ids must be integers in one dimension, not {ids.dtype} of shape {ids.shape}")
    if not ids.size:
        raise ValueError("a document of no tokens cannot be stored; give at least one")
    if ids.min() < 0 or ids.max() >= 1 << 32:
        raise ValueError(f"token ids must be from 0 to 4294967295; found {ids.min()} to {ids.max()}")
    return ids.astype(np.uint32)


def _hash(*parts: str | bytes) -> str:
    """Of the parts, each with its length, so that no two lists of parts are one."""
    state = blake2b(digest_size=_BYTES)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little") + data)
    return state.hexdigest()
