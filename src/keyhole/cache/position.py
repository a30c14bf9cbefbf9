"""Where a decode step of fixed size is in its sequence, as the device knows it; see `keyhole.cache.captured`.

Legend: B batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.core.layout import Constants, Regions


class DecodePosition:
    """Where a step's token goes, for all layers of a request.

    Args:
        length: tokens there are, padding among them.
        room: tokens for which memory is to be there.
        padding: unused slots at the start of each batch row.
    """

    def __init__(self, length: int, room: int, padding: tuple[int, ...], device: torch.device) -> None:
        self.length, self.room, self.padding = length, room, padding
        self.slot = torch.tensor([length], device=device)
        self.starts = torch.tensor(padding, dtype=torch.int32, device=device)
        self.finite = torch.ones((), dtype=torch.bool, device=device)
        slots = torch.arange(room, dtype=torch.int32, device=device)
        self._slots = (slots + self.starts.unsqueeze(1)).clamp(max=room - 1)
        self._constants = Constants()
        self._regions: dict[tuple[int, int], Regions] = {}

    @property
    def positions(self) -> Tensor:
        """Position `[B, 1]` of the step's token in each batch row."""
        return self.slot - self.starts.long().unsqueeze(1)

    @property
    def everything(self) -> tuple[Tensor, Tensor]:
        """All slots of each row, int32 `[B, room]`, and how many there are at this step, int32 `[B]`."""
        return self._slots, (self.slot + 1 - self.starts).int()

    def regions(self, sinks: int, window: int) -> Regions:
        """The parts of the sequence at this step; layers that ask alike are given the same."""
        asked = sinks, window
        if asked not in self._regions:
            self._regions[asked] = self._parts(*asked)
        return self._regions[asked]

    def _parts(self, sinks: int, window: int) -> Regions:
        device, batch = self.slot.device, len(self.padding)
        stop = (self.slot + 1 - window).int().repeat(batch)
        first = self.starts + sinks
        always = torch.cat(
            [
                self.starts.unsqueeze(1) + torch.arange(sinks, dtype=torch.int32, device=device),
                stop.unsqueeze(1) + torch.arange(window, dtype=torch.int32, device=device),
            ],
            dim=1,
        )
        counts = torch.full((batch,), sinks + window, dtype=torch.int32, device=device)
        context = tuple(self.room - unused for unused in self.padding)
        return Regions(
            length=self.room,
            padding=self.padding,
            context=context,
            always=always,
            always_counts=counts,
            first=first,
            last=self.room - window,
            stop=stop,
            constants=self._constants,
        )

    def advance(self) -> None:
        """The step is over, in all layers."""
        self.slot += 1
        self.forget()

    def forget(self) -> None:
        """Compute the parts of the sequence again at the next use."""
        self._regions.clear()

    def rewind(self) -> None:
        """To the first step; what was written since is written again."""
        self.slot.fill_(self.length)
        self.finite.fill_(True)
