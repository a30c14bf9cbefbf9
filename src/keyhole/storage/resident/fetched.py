"""Rows on a tier of which some are fetched, perhaps past blocks that stay at hand.

Legend: B batch, H heads, N rows, S slots, W width of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.storage.base import Footprint, Lookups
from keyhole.storage.chosen import Chosen
from keyhole.storage.formats.base import at
from keyhole.storage.resident.blocks import ResidentBlocks
from keyhole.storage.tiers.buffer import Buffer


class FetchedRows:
    """A buffer whose rows are given on the device that the first ones came from."""

    def __init__(self, buffer: Buffer, resident: ResidentBlocks | None = None) -> None:
        self.buffer, self.resident = buffer, resident
        self._device = torch.device("cpu")

    @property
    def length(self) -> int:
        return self.buffer.length

    def append(self, rows: Tensor) -> None:
        """Append `rows [B, H, T, W]`."""
        self._device = rows.device
        self.buffer.append(rows)

    def view(self, start: int = 0) -> Tensor:
        """Rows from `start` on, `[B, H, length - start, W]`."""
        return self.buffer.view(start).to(self._device)

    def fetch(self, chosen: Chosen) -> Tensor:
        """Rows `[B, H, S, W]` of chosen slots; of filling entries any."""
        if self.resident is None:
            return self._read(chosen.slots)
        places, found = self.resident.locate(chosen, self.length)
        missing = chosen.where(~found)
        rows = self._read(missing.slots)
        fetched = rows.new_zeros(*chosen.slots.shape, rows.shape[-1])
        fetched[chosen.valid_mask() & ~found] = rows[missing.valid_mask()]
        if self.resident.rows is not None:
            fetched[found] = at(self.resident.rows, places.clamp(min=0))[found]
        self.resident.admit(self.buffer, self._device)
        return fetched

    def _read(self, slots: Tensor) -> Tensor:
        held = self.buffer.reading(slots)
        rows = at(held, slots.to(held.device))
        # Pinned, the copy to a GPU needs no second one on the host.
        return rows if held.device == self._device else rows.pin_memory().to(self._device, non_blocking=True)

    @property
    def lookups(self) -> Lookups | None:
        """What resident blocks answered; None without any."""
        return None if self.resident is None else self.resident.lookups

    def crop(self, length: int) -> None:
        """Forget the rows from `length` on."""
        self.buffer.crop(length)
        if self.resident is not None:
            self.resident.crop(length)

    def reorder(self, rows: Tensor) -> None:
        """Take batch rows `rows`, in that order."""
        self.buffer.reorder(rows)
        if self.resident is not None:
            self.resident.clear()

    @property
    def footprint(self) -> Footprint:
        """Bytes held, by tier."""
        fast = 0 if self.resident is None else self.resident.nbytes
        return Footprint(**{self.buffer.tier: self.buffer.nbytes}) + Footprint(device=fast)
