"""Exact attention over selected slots."""

from __future__ import annotations

from torch import Tensor

from keyhole import kernels
from keyhole.attention.logits import Logits
from keyhole.attention.merge import Part


def attend_slots(
    query: Tensor, keys: Tensor, values: Tensor, slots: Tensor, counts: Tensor, logits: Logits
) -> Part:
    """Attend `query [B, H, D]` to chosen slots of `keys`, `values [B, Hkv, N, D]`.

    Args:
        slots: int32 `[B, S]`, the same for all heads, or `[B, Hkv, S]`.
        counts: int32 `[B]` or `[B, Hkv]`, how many of a row's slots are meant.

    Returns:
        The part, out `[B, H, D]` and lse `[B, H]`.
    """
    batch, heads = keys.shape[:2]
    if slots.dim() == 2:
        slots = slots.unsqueeze(1).expand(-1, heads, -1)
        counts = counts.unsqueeze(1).expand(-1, heads)
    attended = kernels.gather_attention(
        query.reshape(batch * heads, -1, query.shape[-1]),
        keys.flatten(0, 1),
        values.flatten(0, 1),
        slots.reshape(batch * heads, -1),
        counts.reshape(-1),
        scale=logits.scale,
        softcap=logits.softcap,
    )
    return Part(attended.out.reshape(batch, query.shape[1], -1), attended.lse.reshape(batch, -1))
