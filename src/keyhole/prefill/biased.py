"""Every query reads every token before it, by logits that importance raises (NOSA)."""

from __future__ import annotations

from torch import Tensor

from keyhole.attention import Logits
from keyhole.attention.biased import biased_prompt_attention
from keyhole.prefill.dense import DensePrefill
from keyhole.storage import BiasedStorage, Storage


class BiasedPrefill(DensePrefill):
    """Exact causal attention with the bias of a `BiasedStorage`; any other storage has none."""

    def attend(self, query: Tensor, storage: Storage, logits: Logits, mask: Tensor | None) -> Tensor:
        alone = query.shape[2] == 1 and mask is None
        if alone or not isinstance(storage, BiasedStorage) or storage.plain:
            return super().attend(query, storage, logits, mask)
        return biased_prompt_attention(query, storage.biased_keys(), storage.values(), logits, mask)
