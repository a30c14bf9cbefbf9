"""Blocks of a slower tier kept in fast memory, those that are read again and again.

Source: the GPU block cache of PQCache, arXiv 2407.12820.

Legend: B batch, H KV heads, S slots, W width of a row.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from keyhole.storage.base import Lookups
from keyhole.storage.chosen import Chosen
from keyhole.storage.tiers.buffer import Buffer
from keyhole.storage.tiers.memory import empty

BLOCK = 128  # tokens that come and go together, all heads of them
BLOCK_EVICTIONS = ("lfu", "lru")
_ADMITTED = 32  # blocks fetched after one read at most
_NOWHERE = -1


class ResidentBlocks:
    """Copies of full blocks, within `nbytes`, for reads of `group` tokens to a row.

    Blocks are fetched after the read that missed them, those with most misses first, so they serve the reads
    that follow. They take the place of the least frequently ("lfu") or least recently ("lru") read ones, of
    equals the oldest, never of blocks that the same read found or brought. Where not even one block fits,
    as is known when the first is to be fetched, none is kept and every read is a miss.
    """

    def __init__(self, nbytes: int, eviction: str, group: int) -> None:
        self._limit, self._eviction, self._group = nbytes, eviction, group
        self._rows: Tensor | None = None  # [B, H, places * rows of a block, W]
        self._hits = self._misses = 0
        self._clear_directory(0)

    @property
    def lookups(self) -> Lookups:
        return Lookups(self._hits, self._misses)

    @property
    def rows(self) -> Tensor | None:
        """What is resident, as rows of the buffer; None before anything is."""
        return self._rows

    @property
    def nbytes(self) -> int:
        return 0 if self._rows is None else self._rows.nbytes

    def look_up(self, chosen: Chosen, tokens: int) -> tuple[Chosen, Chosen]:
        """Part slots `chosen` among `tokens`: those resident, numbered as in `rows`, and the others."""
        there, found = self.locate(chosen, tokens)
        return Chosen(there, chosen.counts).where(found), chosen.where(~found)

    def locate(self, chosen: Chosen, tokens: int) -> tuple[Tensor, Tensor]:
        """Slots of `rows` for slots `chosen` among `tokens`, both `[B, H, S]`; bool, which are resident."""
        self._extend(tokens // BLOCK)
        blocks = (chosen.slots // BLOCK).cpu()
        meant, blocks_read = chosen.valid_mask().cpu(), blocks.numpy()
        # The last block is not full, so it is never resident; reads of it are neither hits nor misses.
        places = np.append(self._place_of, _NOWHERE)[np.minimum(blocks_read, len(self._place_of))]
        found = torch.from_numpy(places != _NOWHERE).logical_and(meant)
        self._count(blocks_read[meant.numpy()])
        there = torch.from_numpy(places).to(chosen.slots.device) * BLOCK + chosen.slots % BLOCK
        return there, found.to(chosen.slots.device)

    def admit(self, buffer: Buffer, device: torch.device) -> None:
        """Fetch the blocks that the last `look_up` missed most."""
        if not len(self._missed):
            return
        if self._rows is None:
            self._allocate(buffer.view(buffer.length), device)
        if self._rows is None:
            return
        places = self._vacate(len(self._missed))
        blocks, self._missed = self._missed[: len(places)], self._missed[:0]
        rows = BLOCK // self._group
        held = buffer.reading(torch.from_numpy(blocks[:, None] * rows + np.arange(rows)))
        for block, place in zip(blocks.tolist(), places.tolist(), strict=True):
            fetched = held[:, :, block * rows : (block + 1) * rows]
            self._rows[:, :, place * rows : (place + 1) * rows] = fetched
        self._place_of[blocks], self._block_at[places] = places, blocks
        self._uses[places], self._last[places] = 1, self._clock

    def crop(self, tokens: int) -> None:
        """Forget what holds tokens from `tokens` on."""
        if tokens == 0:
            self.clear()
            return
        gone = self._place_of[tokens // BLOCK :]
        self._free(gone[gone != _NOWHERE])
        self._place_of, self._missed = self._place_of[: tokens // BLOCK], self._missed[:0]

    def clear(self) -> None:
        """Forget everything; what comes may be of another shape."""
        self._rows = None
        self._clear_directory(0)

    def _clear_directory(self, places: int) -> None:
        self._place_of = np.empty(0, np.int64)  # of each full block, or _NOWHERE
        self._missed = np.empty(0, np.int64)  # blocks, most missed first
        self._clock = 0
        self._block_at, self._last = np.full((2, places), _NOWHERE)  # of each place
        self._uses = np.zeros(places, np.int64)

    def _allocate(self, like: Tensor, device: torch.device) -> None:
        """Make room for blocks of rows as those of `like [B, H, 0, W]`, if one fits."""
        batch, heads, _, width = like.shape
        rows = BLOCK // self._group
        block_bytes = batch * heads * rows * width * like.dtype.itemsize
        places = self._limit // block_bytes
        if places == 0:
            return
        self._rows = empty((batch, heads, places * rows, width), like.dtype, device)
        self._block_at, self._last = np.full((2, places), _NOWHERE)
        self._uses = np.zeros(places, np.int64)

    def _extend(self, blocks: int) -> None:
        more = blocks - len(self._place_of)
        self._place_of = np.append(self._place_of, np.full(more, _NOWHERE))

    def _count(self, blocks: np.ndarray) -> None:
        """Take note of a read of tokens that lie in `blocks`, one entry for each token."""
        self._clock += 1
        reads = np.bincount(blocks, minlength=len(self._place_of))[: len(self._place_of)]
        here = self._place_of != _NOWHERE
        self._hits += int(reads[here].sum())
        self._misses += int(reads[~here].sum())
        used = self._place_of[here & (reads > 0)]
        self._uses[used] += 1
        self._last[used] = self._clock
        missed = np.where(here, 0, reads)
        order = np.argsort(-missed, kind="stable")[:_ADMITTED]
        self._missed = order[missed[order] > 0]

    def _vacate(self, count: int) -> np.ndarray:
        """Up to `count` places that were free or have been freed."""
        frequency = [self._uses] if self._eviction == "lfu" else []
        order = np.lexsort([self._block_at, self._last, *frequency])
        places = order[self._last[order] < self._clock][:count]
        held = self._block_at[places]
        self._place_of[held[held != _NOWHERE]] = _NOWHERE
        return places

    def _free(self, places: np.ndarray) -> None:
        self._block_at[places] = self._last[places] = _NOWHERE
        self._uses[places] = 0
