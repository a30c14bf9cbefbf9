"""Every query reads every token before it."""

from __future__ import annotations

from torch import Tensor

from keyhole.attention import Logits, dense_attention
from keyhole.prefill.base import Prefill
from keyhole.storage import Storage


class DensePrefill(Prefill):
    """Exact causal attention."""

    def attend(self, query: Tensor, storage: Storage, logits: Logits, mask: Tensor | None) -> Tensor:
        if query.shape[2] == 1 and mask is None:
            return storage.attend_all(query, logits, mask)  # a storage may need no copy for one query
        return dense_attention(query, storage.keys(), storage.values(), mask=mask, **logits._asdict())
