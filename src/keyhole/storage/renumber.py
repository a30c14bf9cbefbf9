"""Positions counted from 0 within what is read, so that they stay in a model's range (TokenSelect).

Source: "TokenSelect: Efficient Long-Context Inference and Length Extrapolation for LLMs via Dynamic
Token-Level KV Cache Selection", arXiv 2411.02886. There from 0 on; here back from the newest token, which is
the same to a rotation, and leaves the window and the query where they are.

Legend: B batch, Hkv KV heads, S slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.core.casts import saturated
from keyhole.core.layout import Regions
from keyhole.core.rope import Rope


def closing_moves(slots: Tensor, elected: Tensor, where: Regions) -> Tensor:
    """By how much each token that is read moves on, so that sinks, elected and window lie without a gap.

    Args:
        slots: `[B, Hkv, S]`, sinks and window, or what was elected, ascending from the first entry on.
        elected: how many tokens are read beside sinks and window, `[B, Hkv]`.

    Returns:
        int64 `[B, Hkv, S]`, of filling entries anything.
    """
    slots, elected = slots.long(), elected.long().unsqueeze(-1)
    first = where.first.view(-1, 1, 1).long()
    unread = (where.last - first).clamp(min=0) - elected
    to_window = where.last - elected + torch.arange(slots.shape[-1], device=slots.device) - slots
    return torch.where(slots < first, unread, torch.where(slots < where.last, to_window, 0))


def moved_keys(rope: Rope, keys: Tensor, moves: Tensor) -> Tensor:
    """Keys `[B, Hkv, S, D]` moved on by `moves [B, Hkv, S]`, in their own dtype and its range."""
    return saturated(rope.rotate_each(keys, moves), keys.dtype)
