"""A token scores the attention that the newest one pays to it, over all heads of the layer (TOVA).

Source: Oren et al., "Transformers are Multi-State RNNs", EMNLP 2024, arXiv 2401.06104.

Legend: B batch, Hkv KV heads, N slots.
"""

from __future__ import annotations

from torch import Tensor

from keyhole.retention.kept import Kept
from keyhole.retention.observed import Observed
from keyhole.storage import Storage


class LatestAttention(Observed):
    """The newest token's attention, summed over all heads, so that all heads keep the same tokens.

    Where a wrapper made them keep different ones, a token counts for the heads that have it.
    """

    is_attention = False  # what weighs each head's attention would make heads differ

    def __init__(self) -> None:
        super().__init__(1)

    def scores(self, storage: Storage, kept: Kept) -> Tensor:
        found = self.attention(storage, kept)
        if found is None:
            return kept.positions.float()
        places = kept.positions.long().clamp(min=0)
        own = found.masked_fill(kept.positions < 0, 0.0)
        totals = own.new_zeros(len(own), kept.seen).scatter_add_(1, places.flatten(1), own.flatten(1))
        return totals.gather(1, places.flatten(1)).view_as(own)
