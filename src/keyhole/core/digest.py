"""Digests of tensors at the speed of memory, the same on every device.

The bytes are taken as 64-bit words. Each chunk of words is multiplied with fixed odd numbers and summed
modulo 2^64: one changed word always changes the sum, as an odd number has an inverse; several changed words
leave it as it was with a probability of about 2^-60. The digest is the SHA-256 of all sums. It detects damage
and mistakes; it does not withstand an attacker who looks for a collision.
"""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
import torch
from torch import Tensor

_WORD = 8  # bytes
_CHUNK = 1 << 15  # words
_AT_A_TIME = 64  # chunks, on other devices than the CPU
_SAMPLES = 64


def digest(tensor: Tensor) -> str:
    """The digest of a tensor's numbers in logical order; equal ones of different shape or dtype may agree."""
    data = raw(tensor)
    tail = len(data) % (_CHUNK * _WORD)
    whole, rest = data[: len(data) - tail], data[len(data) - tail :]
    last = torch.zeros(_CHUNK * _WORD if tail else 0, dtype=torch.uint8, device=data.device)
    last[:tail] = rest
    sums = b"".join(_sums(part) for part in (whole, last))
    return hashlib.sha256(len(data).to_bytes(8, "little") + sums).hexdigest()


def sample(tensor: Tensor) -> bytes:
    """Some bytes of a tensor from all over it, which are quick to have."""
    flat = tensor.detach().as_strided((tensor.numel(),), (1,))  # dense ones are seen whole, in whatever order
    step = max(1, len(flat) // _SAMPLES)
    picked = torch.cat([flat[:8], flat[::step], flat[-8:]])
    return picked.view(torch.uint8).cpu().numpy().tobytes()


def raw(tensor: Tensor) -> Tensor:
    """The bytes of a tensor in logical order, uint8 `[n]`; a view where they lie so, at a whole word."""
    flat = tensor.detach().contiguous().reshape(-1)
    if flat.storage_offset() * flat.itemsize % _WORD:
        flat = flat.clone()
    return flat.view(torch.uint8)


def _sums(data: Tensor) -> bytes:
    """The sums of whole chunks of bytes."""
    if data.device.type == "cpu":
        words = data.numpy().view(np.int64).reshape(-1, _CHUNK)
        return np.array([np.dot(chunk, _multipliers()) for chunk in words], np.int64).tobytes()
    factors = torch.from_numpy(_multipliers()).to(data.device)
    parts = data.view(torch.int64).view(-1, _CHUNK).split(_AT_A_TIME)
    return b"".join((part * factors).sum(1).cpu().numpy().tobytes() for part in parts)


@cache
def _multipliers() -> np.ndarray:
    words = hashlib.shake_256(b"keyhole").digest(_CHUNK * _WORD)
    return np.frombuffer(words, np.int64) | 1
