"""Every query reads every token before it."""

from __future__ import annotations

from torch import Tensor

from keyhole.attention import dense_attention
from keyhole.prefill.base import Prefill


class DensePrefill(Prefill):
    """Exact causal attention."""

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        scale: float,
        mask: Tensor | None,
        softcap: float | None,
        sink_logits: Tensor | None,
    ) -> Tensor:
        return dense_attention(
            query, keys, values, scale=scale, mask=mask, softcap=softcap, sink_logits=sink_logits
        )
