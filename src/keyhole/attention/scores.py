"""Logits of a query against keys."""

from __future__ import annotations

from torch import Tensor

from keyhole import kernels
from keyhole.attention.logits import Logits
from keyhole.kernels.pq.tables import softcapped


def key_logits(query: Tensor, keys: Tensor, how: Logits) -> Tensor:
    """Logits `[B, Hkv, G, N]`, float32, of `query [B, H, D]` against `keys [B, Hkv, N, D]`."""
    query = query.unflatten(1, (keys.shape[1], -1)).flatten(0, 1)
    logits = kernels.exact_scores(query, keys.flatten(0, 1), 0, keys.shape[2], scale=how.scale)
    return softcapped(logits, how.softcap).unflatten(0, keys.shape[:2])
