"""Compute: how attention over the prompt is computed."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class Prefill(ABC):
    """Attention of many new queries over the cached tokens, themselves included."""

    @abstractmethod
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
        """Attend `query [B, H, Q, D]` to `keys`, `values [B, Hkv, N, D]`; the last query is the newest token.

        Returns `[B, H, Q, Dv]`. The options are those of `keyhole.attention.dense_attention`.
        """
