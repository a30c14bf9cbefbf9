"""The ends of page boxes in 4 bits each, rounded outwards, and the packed rows that hold them.

The range of a channel, from the least to the greatest key there was at `fit`, is cut into 14 equal steps.
Greatest keys are rounded up and least ones down, so a box never shrinks. Keys beyond the range, which only
come later, get a code of their own, whose level lies half the range further out.

Legend: B batch, Hkv KV heads, T tokens, P pages, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole import kernels
from keyhole.kernels.pq.types import BLOCK

BITS = 4
_TOP = 2**BITS - 1
_STEPS = _TOP - 1
_TINY = 1e-30  # of a channel whose keys are all equal
_ROUNDING = 1e-3  # of a step, so that a key on a level, such as the greatest, gets that level
_MOST = 256  # numbers of a row of codes that kernels take


def fit_levels(keys: Tensor, counted: Tensor) -> Tensor:
    """The least level and the step of each channel, float32 `[B, Hkv, D, 2]`.

    Args:
        keys: `[B, Hkv, T, D]`.
        counted: bool `[B, T]`, the keys that are in boxes; of none the levels are all zero.
    """
    unused, far = ~counted[:, None, :, None], torch.finfo(keys.dtype).max
    least = keys.masked_fill(unused, far).amin(2).float()
    greatest = keys.masked_fill(unused, -far).amax(2).float()
    step = (greatest / _STEPS - least / _STEPS).clamp(min=_TINY)
    levels = torch.stack([least, step], -1)
    return levels.where(counted.any(1).view(-1, 1, 1, 1), 0.0)


def encode(greatest: Tensor, least: Tensor, levels: Tensor) -> Tensor:
    """Box ends `[B, Hkv, P, D]` as packed rows, uint8 `[B, Hkv, P, D]`: the upper one in the low bits."""
    base, step = (part.unsqueeze(2) for part in levels.unbind(-1))
    step = step.clamp(min=_TINY)
    up = ((greatest.float() - base) / step - _ROUNDING).ceil().clamp(0, _TOP)
    down = ((least.float() - base) / step + _ROUNDING).floor().clamp(-1, _STEPS) + 1
    return up.to(torch.uint8) | down.to(torch.uint8) << BITS


def level_values(levels: Tensor) -> Tensor:
    """What codes of upper and lower ends stand for, float32 `[B, Hkv, D, 2, 16]`."""
    base, step = (part.unsqueeze(-1) for part in levels.unbind(-1))
    grid = base + step * torch.arange(_STEPS + 1, device=base.device, dtype=base.dtype)
    beyond = step * (_STEPS / 2)
    up = torch.cat([grid, grid[..., -1:] + beyond], -1)
    down = torch.cat([grid[..., :1] - beyond, grid], -1)
    return torch.stack([up, down], -2)


def joined(former: Tensor, latter: Tensor) -> Tensor:
    """Packed rows of pages, of those of their two parts."""
    up = (former & _TOP).maximum(latter & _TOP)
    return up | (former >> BITS).minimum(latter >> BITS) << BITS


class PackedBoxes:
    """Packed rows `[B, Hkv, P, D]`, as kernels scan them; memory doubles when it is full.

    Rows of more numbers than kernels take are cut into parts of equal size.
    """

    def __init__(self) -> None:
        self._codes = torch.empty(0)  # uint8 `[B * Hkv * parts, blocks, bytes]`
        self._shape = (0, 0, 0)  # B, Hkv, D
        self._length = 0

    @property
    def length(self) -> int:
        return self._length

    @property
    def codes(self) -> Tensor:
        """The code buffer, of B * Hkv * parts rows."""
        return self._codes

    def append(self, rows: Tensor) -> None:
        start = self._length
        if not start:
            self._shape = (rows.shape[0], rows.shape[1], rows.shape[3])
            self._codes = self._allocated(0, rows.device)
        self._length += rows.shape[2]
        self.reserve(self._length)
        self._write(rows, start)

    def view(self, start: int = 0) -> Tensor:
        batch, heads, size = self._shape
        parts = parts_of(size)
        codes = kernels.read_codes(self._codes, start, self._length, subspaces=2 * size // parts, bits=BITS)
        rows = codes[..., ::2] | codes[..., 1::2] << BITS
        return rows.unflatten(0, (batch, heads, parts)).transpose(2, 3).flatten(3)

    def reserve(self, rows: int) -> None:
        old = self._codes
        if rows > old.shape[1] * BLOCK:
            self._codes = self._allocated(max(rows, 2 * old.shape[1] * BLOCK), old.device)
            self._codes[:, : old.shape[1]] = old

    def extend(self, length: int) -> None:
        self._length = length

    def put(self, rows: Tensor, places: Tensor) -> None:
        self._write(rows, places)

    def crop(self, length: int) -> None:
        self._length = min(self._length, length)

    def reorder(self, rows: Tensor) -> None:
        codes = self._codes.unflatten(0, (self._shape[0], -1)).index_select(0, rows.to(self._codes.device))
        self._codes, self._shape = codes.flatten(0, 1), (len(rows), *self._shape[1:])

    @property
    def nbytes(self) -> int:
        return self._codes.nbytes

    def _allocated(self, capacity: int, device: torch.device) -> Tensor:
        batch, heads, size = self._shape
        parts = parts_of(size)
        return kernels.allocate_codes(batch * heads * parts, capacity, 2 * size // parts, BITS, device=device)

    def _write(self, rows: Tensor, start: int | Tensor) -> None:
        parts = parts_of(self._shape[2])
        apart = rows.unflatten(-1, (parts, -1)).transpose(2, 3).flatten(0, 2)
        codes = torch.stack([apart & _TOP, apart >> BITS], -1).flatten(-2)
        kernels.write_codes(self._codes, start, codes, bits=BITS)


def parts_of(size: int) -> int:
    """Parts that the ends of a box of so many channels are scanned in."""
    least = -(-2 * size // _MOST)
    return next(parts for parts in range(max(least, 1), size + 1) if size % parts == 0)
