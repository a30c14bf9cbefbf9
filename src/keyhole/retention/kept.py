"""Which tokens of a sequence are kept, by batch row and KV head.

Legend: B batch, Hkv KV heads, N slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.storage import ROOM, Chosen, GrowingBuffer, kept_rows

_NONE = -1


class Kept:
    """The position in the text of each slot, ascending; the last slot of every head is the newest token.

    Heads that keep fewer tokens than others have filling first.

    Attributes:
        seen: tokens there were, evicted ones and padding among them.
        padding: unused positions at the start of each batch row.
        filling: int64 `[B, Hkv]`, slots without a token.
        ragged: whether there is any.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Start again."""
        self.seen = 0
        self.padding: tuple[int, ...] = ()
        self.filling = torch.zeros(0, dtype=torch.long)
        self.ragged = False
        self._positions = GrowingBuffer(ROOM)

    def append(self, batch: int, heads: int, tokens: int, device: torch.device) -> None:
        """So many tokens came, for each of the heads."""
        if self.seen == 0:
            self.clear()
            self.padding = (0,) * batch
            self.filling = torch.zeros(batch, heads, dtype=torch.long, device=device)
        new = torch.arange(self.seen, self.seen + tokens, dtype=torch.int32, device=device)
        self._positions.append(new.view(1, 1, -1, 1).expand(batch, heads, -1, -1))
        self.seen += tokens

    @property
    def slots(self) -> int:
        """N."""
        return self._positions.length

    @property
    def positions(self) -> Tensor:
        """Int32 `[B, Hkv, N]`, -1 for filling."""
        return self._positions.view().squeeze(-1)

    @property
    def context(self) -> tuple[int, ...]:
        """Tokens each batch row has seen, without padding."""
        return tuple(self.seen - unused for unused in self.padding)

    @property
    def average(self) -> float:
        """Tokens kept, a mean over batch rows and heads."""
        return self.slots - float(self.filling.float().mean())

    @property
    def uneven(self) -> bool:
        """Whether heads of a row keep different numbers of tokens."""
        return self.ragged and bool((self.filling != self.filling[:, :1]).any())

    def valid(self) -> Tensor:
        """Bool `[B, Hkv, N]`, false for filling."""
        return torch.arange(self.slots, device=self.filling.device) >= self.filling.unsqueeze(-1)

    def mask(self, queries: int) -> Tensor | None:
        """Which slots each of the newest so many tokens sees, `[B, 1 or Hkv, queries, N]`; None is causal."""
        if not self.ragged and queries <= self.slots:
            return None
        filling = self.filling if self.uneven else self.filling[:, :1]
        slots = torch.arange(self.slots, device=filling.device)
        own = torch.arange(self.slots - queries, self.slots, device=filling.device)
        return (slots <= own.view(-1, 1)) & (slots >= filling[..., None, None])

    def keep(self, kept: Chosen) -> None:
        """The other slots are gone."""
        self._positions = kept_rows(self._positions, kept, _NONE)
        if kept.dropped is None:
            self.filling = self.slots - kept.counts.long()
            self.ragged = bool(self.filling.any())

    def forget(self, length: int) -> None:
        """There were only so many tokens; the slots of later ones are gone already."""
        self.seen = min(self.seen, length)

    def reorder(self, rows: Tensor) -> None:
        """Take the batch rows `rows`, in that order."""
        self._positions.reorder(rows)
        self.filling = self.filling[rows.to(self.filling.device)]
        self.padding = tuple(self.padding[row] for row in rows.tolist())
        self.ragged = bool(self.filling.any())

    def state(self) -> dict[str, Tensor]:
        """As named tensors."""
        if not self.seen:
            return {}
        return {"positions": self.positions, "padding": torch.tensor([self.seen, *self.padding])}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned."""
        self.clear()
        if not state:
            return
        positions = state["positions"]
        self.seen, *padding = state["padding"].tolist()
        self.padding = tuple(padding)
        self._positions.append(positions.unsqueeze(-1))
        self.filling = (positions < 0).sum(-1)
        self.ragged = bool(self.filling.any())

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._positions.nbytes
