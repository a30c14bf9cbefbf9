"""Blocks of a slower tier in slots of each KV head, fetched before they are read.

Source: NOSI, the decoding of "NOSA: Native and Offloadable Sparse Attention", arXiv 2510.13602. As there,
only the difference of two steps is fetched and no resident block moves; unlike there, a block that the newest
tokens have filled stays resident.

Legend: B batch, H KV heads, R = B * H, n blocks, C slots of a head, W width of a row, which holds a block.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from keyhole.storage.base import Lookups
from keyhole.storage.chosen import Chosen
from keyhole.storage.resident.locality import Locality
from keyhole.storage.tiers.buffer import Buffer
from keyhole.storage.tiers.memory import empty

_NOWHERE = -1


class ResidentSlots:
    """Copies of rows, each a block of `group` tokens, that KV heads choose for themselves.

    Blocks that a read misses take the slots of those that were read longest ago, of equals the lower slots,
    never of those that the same step has read.

    Args:
        nbytes: of all slots; 0 has as many as the widest step reads.
    """

    def __init__(self, nbytes: int, group: int) -> None:
        self._limit, self._group = nbytes, group
        self._hits = self._misses = self._fetched = 0
        self.locality = Locality()
        self.clear()

    @property
    def lookups(self) -> Lookups:
        seen = self.locality
        return Lookups(self._hits, self._misses, self._fetched, seen.blocks, seen.again)

    @property
    def nbytes(self) -> int:
        return 0 if self._rows is None else self._rows.nbytes

    def begin(self) -> None:
        """A step begins: what the one before has read may make room from now on."""
        self._clock += 1
        self.locality.begin()

    def bring(self, chosen: Chosen, buffer: Buffer, device: torch.device) -> tuple[Tensor, Chosen]:
        """Rows `[B, H, C, W]`, and where in them the `chosen` tokens lie, once they were fetched.

        Raises:
            ValueError: the bytes given do not hold what a step reads.
        """
        batch, heads, width = chosen.slots.shape
        blocks = (chosen.slots // self._group).cpu().numpy().reshape(batch * heads, width)
        meant = chosen.valid_mask().cpu().numpy().reshape(batch * heads, width)
        self._extend(batch * heads, buffer.length)
        row = np.broadcast_to(np.arange(batch * heads)[:, None], meant.shape)[meant]
        wanted = np.zeros(self._slot_of.shape, bool)
        wanted[row, blocks[meant]] = True
        self._count(self._slot_of[row, blocks[meant]] != _NOWHERE)
        self.locality.read(wanted)
        there = wanted & (self._slot_of != _NOWHERE)
        self._last[there.nonzero()[0], self._slot_of[there]] = self._clock
        rows = self._fill(wanted & ~there, buffer, (batch, heads), device)
        slots = self._slot_of[np.arange(batch * heads)[:, None], np.where(meant, blocks, 0)]
        places = torch.from_numpy(slots.clip(min=0).reshape(batch, heads, width)).to(chosen.slots.device)
        return rows, Chosen(places * self._group + chosen.slots % self._group, chosen.counts)

    def came(self, first: int, rows: Tensor) -> None:
        """The newest rows `[B, H, t, W]` of the buffer, from `first` on: they stay where there is room."""
        if self._rows is None:
            return
        batch, heads, count, width = rows.shape
        self._extend(batch * heads, first + count)
        free = int((self._last < self._clock).sum(1).min())
        kept = min(count, free)
        row = np.repeat(np.arange(batch * heads), kept)
        block = np.tile(np.arange(first + count - kept, first + count), batch * heads)
        slots = self._take(row, block)
        self._write(row, slots, rows[:, :, count - kept :].reshape(-1, width))

    def crop(self, tokens: int) -> None:
        """Forget what holds tokens from `tokens` on."""
        if tokens == 0:
            self.clear()
            return
        blocks = tokens // self._group
        gone = self._block_at >= blocks
        self._block_at[gone] = self._last[gone] = _NOWHERE
        self._slot_of = self._slot_of[:, :blocks]
        self.locality.forget()

    def clear(self) -> None:
        """Forget everything; what comes may be of another shape."""
        self._rows: Tensor | None = None  # `[B, H, C, W]`
        self._slot_of = np.empty((0, 0), np.int64)  # `[R, n]`, or _NOWHERE
        self._block_at = np.empty((0, 0), np.int64)  # `[R, C]`, or _NOWHERE
        self._last = np.empty((0, 0), np.int64)  # `[R, C]`, the step that read it last
        self._clock = 0
        self.locality.forget()

    def _extend(self, heads: int, blocks: int) -> None:
        """Know so many heads and blocks."""
        if len(self._slot_of) != heads:
            self._slot_of, self._block_at = np.empty((heads, 0), np.int64), np.empty((heads, 0), np.int64)
            self._last = np.empty((heads, 0), np.int64)
        more = blocks - self._slot_of.shape[1]
        if more > 0:
            self._slot_of = np.pad(self._slot_of, ((0, 0), (0, more)), constant_values=_NOWHERE)

    def _count(self, found: np.ndarray) -> None:
        hits = int(found.sum())
        self._hits, self._misses = self._hits + hits, self._misses + len(found) - hits

    def _fill(
        self, missing: np.ndarray, buffer: Buffer, shape: tuple[int, int], device: torch.device
    ) -> Tensor:
        """Fetch `missing` blocks; returns all rows."""
        needed = missing.sum(1)
        self._make_room(needed, buffer, shape, device)
        assert self._rows is not None
        if needed.any():
            row, block = missing.nonzero()
            slots = self._take(row, block)
            held = buffer.reading(torch.from_numpy(block))
            fetched = _picked(held, row // shape[1], row % shape[1], block)
            self._fetched += fetched.nbytes
            self._write(row, slots, fetched)
        return self._rows

    def _take(self, row: np.ndarray, block: np.ndarray) -> np.ndarray:
        """Slots for blocks, which are theirs from now on; of pairs of a head and a block, heads ascend."""
        first = np.searchsorted(row, np.arange(len(self._last)))
        oldest = np.argsort(self._last, axis=1, kind="stable")
        slots = oldest[row, np.arange(len(row)) - first[row]]
        former = self._block_at[row, slots]
        left = former != _NOWHERE
        self._slot_of[row[left], former[left]] = _NOWHERE
        self._block_at[row, slots], self._slot_of[row, block] = block, slots
        self._last[row, slots] = self._clock
        return slots

    def _write(self, row: np.ndarray, slots: np.ndarray, rows: Tensor) -> None:
        assert self._rows is not None
        places = torch.from_numpy(row * self._rows.shape[2] + slots).to(self._rows.device)
        self._rows.flatten(0, 2).index_copy_(0, places, rows.to(self._rows.device))

    def _make_room(
        self, needed: np.ndarray, buffer: Buffer, shape: tuple[int, int], device: torch.device
    ) -> None:
        """Have slots that the same step did not read for so many blocks of each head."""
        busy = (self._last == self._clock).sum(1)
        most = int((busy + needed).max())
        slots = self._last.shape[1]
        if self._rows is not None and most <= slots:
            return
        like = buffer.view(buffer.length)
        slot_bytes = math.prod(shape) * like.shape[3] * like.dtype.itemsize
        places = self._limit // slot_bytes if self._limit else max(most, 1)
        if places < most:
            raise ValueError(
                f"resident slots of {self._limit} bytes hold {places} blocks of {self._group} tokens per KV "
                f"head, and a step reads {most}; give block_cache= at least {most * slot_bytes} bytes a "
                "layer, or a smaller budget"
            )
        rows = empty((*shape, places, like.shape[3]), like.dtype, device)
        if self._rows is not None:
            rows[:, :, :slots] = self._rows
        self._rows, more = rows, ((0, 0), (0, places - slots))
        self._block_at = np.pad(self._block_at, more, constant_values=_NOWHERE)
        self._last = np.pad(self._last, more, constant_values=_NOWHERE)


def _picked(held: Tensor, batch: np.ndarray, heads: np.ndarray, blocks: np.ndarray) -> Tensor:
    """Rows `[m, W]` of `held [B, H, n, W]`, of any strides, by three lists of as many numbers."""
    sizes, strides = held.shape[:3], held.stride()[:3]
    unit = math.gcd(*strides) or 1
    count = 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)) // unit
    offset = sum(part * stride for part, stride in zip((batch, heads, blocks), strides, strict=True))
    rows = held.as_strided((count, held.shape[3]), (unit, held.stride(3)), held.storage_offset())
    return rows.index_select(0, torch.from_numpy(offset // unit).to(held.device))
