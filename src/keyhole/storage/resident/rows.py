"""Rows in host memory behind a resident buffer on the device, which finds, fetches and drops them itself.

Source: HiSparse of SGLang (pull request 20343): a resident buffer of single tokens for each request, least
recently used ones going first. Here for any KV heads, each of which chooses for itself.

Legend: B batch, H KV heads, N rows, P places, Q slots of the ring, S chosen, W width of a row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from keyhole import kernels
from keyhole.kernels import Extent, ResidentState
from keyhole.storage.base import Footprint, Lookups
from keyhole.storage.chosen import Chosen
from keyhole.storage.formats.base import at
from keyhole.storage.tiers.buffer import HostBuffer

RING = 256  # newest rows at hand, at least
_FEW = 32  # rows that a kernel writes to the host; more are copied by a stream of their own
_SPARE = 2  # places for each row that a read may choose, where no number of bytes is given


class Parts(NamedTuple):
    """The pool, its state, and the host's memory `[B * H, capacity, W]`."""

    pool: Tensor
    state: ResidentState
    held: Tensor


class ResidentRows:
    """Rows by slot: all of them in (pinned) host memory, some of them on the device that they came from.

    The newest lie in a ring on the device, at least two windows of them, and are written to the host without
    anyone waiting. A read of others looks them up in a directory on the device, and those that are missing
    take the place of the least recently read: a step launches the same kernels whatever is found, and its
    host waits for nothing. `ResidentBlocks` serve where the host decides: in front of a disk, of rows that
    hold several tokens, and on the CPU.

    Args:
        nbytes: of places on the device for rows that are not among the newest; 0 makes them twice as many as
            the widest read chooses, since much of what a step reads was read by one of the last.
        window: rows that are sure to be read from the ring.
        impl: who computes.
    """

    def __init__(self, nbytes: int = 0, window: int = 0, *, impl: str = "auto") -> None:
        self._limit, self._impl = nbytes, impl
        self._ring = max(RING, 1 << (2 * window - 1).bit_length())
        self.host = HostBuffer()
        self._heads = (0, 0)  # B and H
        self._first = 0  # the slot from which on rows lie in the ring
        self._pool: Tensor | None = None  # `[B * H, P + Q, W]`
        self._state: ResidentState | None = None
        self._piece: Tensor | None = None  # `[B * H, T, W]`, the last piece of a prompt, until it was read

    @property
    def length(self) -> int:
        return self.host.length

    @property
    def heads(self) -> int:
        """H."""
        return self._heads[1]

    def append(self, rows: Tensor) -> None:
        """Append `rows [B, H, T, W]`."""
        if self.length == 0:
            self._begin(rows)
        # Kernels wait for what came before now, so that reading it will not be to wait for this.
        self.host.precede(rows.device)
        self._piece = None
        if rows.shape[2] <= min(_FEW, self._ring):
            self.host.room_for(rows)
            pool, state, held = self._parts()
            kernels.resident_append(state, pool, held, rows.flatten(0, 1), impl=self._impl)
            self._first = max(self._first, self.length - self._ring)
            return
        self.host.append(rows)
        pool, state = self._known()
        self._piece = rows.flatten(0, 1)
        newest = self._piece[:, -self._ring :]
        slots = torch.arange(self.length - newest.shape[1], self.length, device=rows.device)
        pool.index_copy_(1, state.owner.shape[1] + slots % self._ring, newest)
        self._bound(max(self._first, self.length - self._ring))

    def view(self, start: int = 0, columns: slice = slice(None)) -> Tensor:
        """Rows from `start` on, `[B, H, length - start, W]`, or those `columns` of them, on the device.

        Where they are not all in the ring they take memory of the device. The last piece of a prompt is not
        read back: it stays until its last columns were asked for.
        """
        rows = self._newest(start)[..., columns] if start >= self._first else self._read(start, columns)
        return rows.unflatten(0, self._heads)

    def bring(self, chosen: Chosen) -> tuple[Tensor, Tensor]:
        """The pool `[B, H, P + Q, W]`, and where in it chosen slots lie, `[B, H, S]`, once they were fetched.

        Raises:
            ValueError: the bytes given do not hold what is chosen at once.
        """
        width = chosen.slots.shape[-1]
        self._make_room(width)
        pool, state, held = self._parts()
        self._piece = None
        slots, counts = chosen.slots.reshape(len(pool), width), chosen.counts.reshape(len(pool))
        found = kernels.resident_lookup(state, slots, counts, impl=self._impl)
        kernels.resident_fill(pool, held, found, impl=self._impl)
        return pool.unflatten(0, self._heads), found.places.unflatten(0, self._heads)

    def fetch(self, chosen: Chosen) -> Tensor:
        """Rows `[B, H, S, W]` of chosen slots; of filling entries any."""
        return at(*self.bring(chosen))

    @property
    def lookups(self) -> Lookups:
        """Reads of rows behind the ring, found on the device or not; asking waits for the device."""
        return Lookups() if self._state is None else Lookups(*self._state.counted.tolist())

    def crop(self, length: int) -> None:
        """Forget the rows from `length` on."""
        if length >= self.length:
            return
        self._piece = None
        self.host.crop(length)
        if length == 0:
            self._empty()
            return
        _, state = self._known()
        gone = state.owner >= length
        state.owner.masked_fill_(gone, -1)
        state.used.masked_fill_(gone, 0)
        state.place[:, length:].fill_(-1)
        self._bound(min(self._first, length))

    def reorder(self, rows: Tensor) -> None:
        """Take batch rows `rows`, in that order. For another number of them what was fetched is gone."""
        if self.length == 0:
            return
        pool, state = self._known()
        batch, heads = self._heads
        self._piece = None
        self.host.reorder(rows)
        rows = rows.to(pool.device)
        taken = (rows.unsqueeze(1) * heads + torch.arange(heads, device=pool.device)).flatten()
        self._heads, self._pool = (len(rows), heads), pool.index_select(0, taken)
        self._state = state.of(taken)
        if len(rows) != batch:
            self._resize(0)

    @property
    def footprint(self) -> Footprint:
        """Bytes held, by tier."""
        held = [] if self._state is None else [self._pool, self._piece, *self._state.tensors]
        device = sum(tensor.nbytes for tensor in held if tensor is not None)
        return Footprint(device=device, host=self.host.nbytes)

    def _parts(self) -> Parts:
        """What there is, once all copies have come to the host as far as kernels are concerned."""
        pool, state = self._known()
        self.host.precede(pool.device)
        held = self.host.memory.flatten(0, 1)
        more = held.shape[1] - state.place.shape[1]
        if more > 0:
            state = self._state = state._replace(place=F.pad(state.place, (0, more), value=-1))
        return Parts(pool, state, held)

    def _known(self) -> tuple[Tensor, ResidentState]:
        if self._pool is None or self._state is None:
            raise ValueError("nothing is held; append first")
        return self._pool, self._state

    def _begin(self, rows: Tensor) -> None:
        """Be ready for rows such as these."""
        batch, heads, _, width = rows.shape
        counted = None if self._state is None else self._state.counted.to(rows.device)
        self._heads, self._first = (batch, heads), 0
        self._pool = rows.new_zeros(batch * heads, self._ring, width)
        self._state = kernels.resident_directory(batch * heads, 0, 0, self._ring, rows.device)
        if counted is not None:
            self._state = self._state._replace(counted=counted)

    def _empty(self) -> None:
        """Give memory back."""
        pool, state = self._known()
        fresh = kernels.resident_directory(len(pool), 0, 0, self._ring, pool.device)
        self._pool, self._state, self._first = pool[:, :0].clone(), fresh._replace(counted=state.counted), 0

    def _make_room(self, width: int) -> None:
        """Have places for a read of so many rows of each head."""
        pool, state = self._known()
        if width <= state.owner.shape[1]:
            return
        place_bytes = pool[:, :1].nbytes
        places = self._limit // place_bytes if self._limit else _SPARE * width
        if places < width:
            raise ValueError(
                f"a resident buffer of {self._limit} bytes has {places} places a head, of {len(pool)}, "
                f"and a step reads {width} tokens at once; give block_cache= at least {width * place_bytes} "
                "bytes a layer, or a smaller budget"
            )
        self._resize(places)

    def _resize(self, places: int) -> None:
        """Have so many places, all empty."""
        pool, state = self._known()
        resized = pool.new_zeros(len(pool), places + self._ring, pool.shape[2])
        resized[:, places:] = pool[:, state.owner.shape[1] :]
        fresh = kernels.resident_directory(len(pool), state.place.shape[1], places, self._ring, pool.device)
        self._pool, self._state = resized, fresh._replace(held=state.held, counted=state.counted)

    def _bound(self, first: int) -> None:
        """Say on the device, too, which slots lie in the ring."""
        self._first = first
        _, state = self._known()
        state.held[:, 0].fill_(first)
        state.held[:, 1].fill_(self.length)

    def _newest(self, start: int) -> Tensor:
        """Rows `[B * H, length - start, W]` out of the ring."""
        pool, state = self._known()
        ring, count, begin = pool[:, state.owner.shape[1] :], self.length - start, start % self._ring
        if begin + count <= self._ring:
            return ring[:, begin : begin + count]
        return torch.cat([ring[:, begin:], ring[:, : begin + count - self._ring]], dim=1)

    def _read(self, start: int, columns: slice) -> Tensor:
        """Columns of rows `[B * H, length - start, W]` out of host memory, and of a piece that is here."""
        pool, _ = self._known()
        begin, end, _ = columns.indices(pool.shape[2])
        piece = None if self._piece is None else self._piece[..., columns]
        fetched = self.length - (0 if piece is None else piece.shape[1])
        if end == pool.shape[2]:
            self._piece = None
        if piece is not None and start >= fetched:
            return piece[:, start - fetched :]
        held = self._parts().held if piece is None else self.host.memory.flatten(0, 1)
        rows = pool.new_empty(len(pool), self.length - start, end - begin)
        extent = Extent(start, fetched, begin, end)
        kernels.read_rows(held, extent, rows[:, : fetched - start], impl=self._impl)
        if piece is not None:
            rows[:, fetched - start :] = piece
        return rows
