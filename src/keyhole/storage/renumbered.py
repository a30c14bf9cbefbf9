"""Keys that are moved to positions without gaps where they are read (TokenSelect).

Legend: B batch, H query heads, Hkv KV heads, S slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.attention import Logits, Part, attend_slots
from keyhole.core.budget import Budget
from keyhole.core.layout import Regions
from keyhole.core.rope import Rope
from keyhole.storage.base import Storage
from keyhole.storage.chosen import Chosen
from keyhole.storage.device import DeviceStorage
from keyhole.storage.formats.base import at
from keyhole.storage.renumber import closing_moves, moved_keys


class RenumberedStorage(DeviceStorage):
    """Attends in parts as if nothing lay between the tokens that a step reads; `keys` are as they came.

    The sinks come first, before the step elects, so how many it will elect is taken from the budget.

    Args:
        rope: the layer's rotation.
        budget: of the steps, a number of tokens or a share of the context.
    """

    def __init__(self, rope: Rope, budget: Budget) -> None:
        super().__init__()
        self.rope, self.budget = rope, budget
        self._regions: Regions | None = None

    @property
    def varying(self) -> str:
        return "with renumber what is read moves by numbers that the host computes"

    def settle(self, regions: Regions) -> None:
        if regions.hidden is not None:
            raise ValueError(
                "renumber=true does not support attention masks that hide tokens inside a sequence; leave "
                "renumber out, or pad only at the left of the whole sequence"
            )
        self._regions = regions

    def attend(self, query: Tensor, slots: Tensor, counts: Tensor, logits: Logits) -> Part:
        if self._regions is None:
            raise ValueError("the tokens of a step are unknown; call settle first")
        chosen = Chosen.of(slots, counts, self.keys().shape[1])
        moves = closing_moves(chosen.slots, self._elected(self._regions, chosen.counts), self._regions)
        keys, values = (at(part, chosen.slots) for part in (self.keys(), self.values()))
        keys = moved_keys(self.rope, keys, moves)
        places = torch.arange(keys.shape[2], device=keys.device).expand(chosen.slots.shape)
        return attend_slots(query, keys, values, places, chosen.counts, logits)

    # By `attend`: the native call beside a part would read keys that are not moved.
    attend_beside = Storage.attend_beside

    def _elected(self, regions: Regions, counts: Tensor) -> Tensor:
        """Tokens read beside sinks and window, shaped as `counts [B, Hkv]`."""
        limits = [self.budget.limit(tokens) for tokens in regions.context]
        competing = (regions.last - regions.first).clamp(min=0)
        elected = torch.tensor(limits, device=competing.device).minimum(competing)
        return elected.unsqueeze(1).expand(counts.shape)
