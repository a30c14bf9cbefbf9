"""Tokens of a packed storage that stay as they came: the first ones of the text, and the newest.

Legend: B batch, H KV heads, T tokens, D and E size of keys and of values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.storage.chosen import Chosen
from keyhole.storage.tiers.buffer import GrowingBuffer


class WholeTokens:
    """One buffer `[B, H, T, D + E]` of both, so that a step reads sinks and window by one call.

    Before anything is packed, all tokens are among the newest. From then on the first `most` of the text
    stand in front.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.first = 0  # tokens in front of the newest
        self._buffer = GrowingBuffer()

    @property
    def length(self) -> int:
        return self._buffer.length

    @property
    def newest(self) -> int:
        """Tokens behind what is packed."""
        return self.length - self.first

    @property
    def nbytes(self) -> int:
        return self._buffer.nbytes

    def append(self, tokens: Tensor) -> None:
        self._buffer.append(tokens)

    def view(self) -> Tensor:
        return self._buffer.view()

    def view_first(self) -> Tensor:
        return self.view()[:, :, : self.first]

    def view_newest(self) -> Tensor:
        return self.view()[:, :, self.first :]

    def put(self, first: Tensor | None, newest: Tensor) -> None:
        """Hold these instead, in memory of their size."""
        self.first = 0 if first is None else first.shape[2]
        held = newest if first is None else torch.cat([first, newest], dim=2)
        self._buffer = GrowingBuffer()
        self._buffer.append(held)

    def take(self, count: int) -> Tensor:
        """The oldest `count >= most` of the newest tokens, which are packed now, as they are to be packed.

        The first ones of the text are remembered, and repeat what follows them: as attention sinks they have
        keys unlike all others, and would widen the range of every number of their group.
        """
        taken = self.view_newest()[:, :, :count]
        first, rest = self.view_first(), self.view_newest()[:, :, count:]
        if not self.first and self.most:
            first = taken[:, :, : self.most].clone()
            after = taken[:, :, self.most : self.most + 1].expand_as(first)
            taken = torch.cat([after, taken[:, :, self.most :]], dim=2)
        self.put(first, rest)
        return taken

    def crop(self, newest: int) -> None:
        self._buffer.crop(self.first + newest)

    def reorder(self, rows: Tensor) -> None:
        self._buffer.reorder(rows)

    def places(self, slots: Tensor, packed: int) -> tuple[Tensor, Tensor]:
        """Where slots are in this buffer, and whether they are here: the first, and those behind `packed`."""
        early, late = slots < self.first, slots >= packed
        return torch.where(early, slots, slots - packed + self.first), early | late

    def split(self, chosen: Chosen, packed: int) -> tuple[Chosen, Chosen]:
        """Which of the chosen slots are here, as slots of this buffer, and those among `packed` tokens."""
        places, here = self.places(chosen.slots, packed)
        return Chosen(places, chosen.counts).where(here), chosen.where(~here)
