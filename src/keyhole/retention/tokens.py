"""Keep the tokens with the highest scores.

Legend: B batch, Hkv KV heads, N slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.retention.base import Allocator


class BestTokens(Allocator):
    """So many tokens of each head; the lower slot where two have the same score."""

    def pick(self, scores: Tensor, competing: Tensor, room: Tensor) -> Tensor:
        return best_tokens(scores, competing, room.view(-1, 1))

    def worst(self, scores: Tensor) -> Tensor:
        # The first of the least in reverse order: the last one.
        return scores.shape[-1] - 1 - scores.flip(-1).argmin(-1)


class BestOfLayer(Allocator):
    """So many tokens of all heads together, so that heads whose attention is spread keep more (Ada-KV).

    Source: "Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM Inference",
    arXiv 2407.11550.

    Args:
        floor: share of an equal part that each head has in any case.
    """

    def __init__(self, floor: float) -> None:
        self.floor = floor

    def pick(self, scores: Tensor, competing: Tensor, room: Tensor) -> Tensor:
        batch, heads = scores.shape[:2]
        flat = _ranks(scores.reshape(batch, 1, -1), competing.reshape(batch, 1, -1)).view_as(scores)
        chosen = (_first(flat, (room * heads).view(-1, 1, 1)) & competing).sum(-1)
        counts = _shares(chosen, room, competing.sum(-1), self.floor)
        return best_tokens(scores, competing, counts)


def best_tokens(scores: Tensor, competing: Tensor, counts: Tensor) -> Tensor:
    """The best `counts [B, Hkv]` tokens of each head that compete, bool `[B, Hkv, N]`; ties as above."""
    return _first(_ranks(scores, competing), counts.unsqueeze(-1)) & competing


def _ranks(scores: Tensor, competing: Tensor) -> Tensor:
    """The place of each slot among those of its row, 0 for the best."""
    order = scores.masked_fill(~competing, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
    places = torch.arange(scores.shape[-1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


def _first(ranks: Tensor, counts: Tensor) -> Tensor:
    return ranks < counts


def _shares(chosen: Tensor, room: Tensor, available: Tensor, floor: float) -> Tensor:
    """Tokens for each head, `[B, Hkv]`: mostly as many as were `chosen`, but the floor in any case.

    They add up to what was chosen; what rounding leaves goes to the first heads that have more tokens.
    """
    least = torch.minimum((floor * room.float()).floor().long().unsqueeze(-1), available)
    wanted = least + (chosen.float() * (1 - floor)).floor().long()
    counts = torch.minimum(wanted, available)
    for _ in range(counts.shape[-1]):
        left = (chosen.sum(-1) - counts.sum(-1)).clamp(min=0)
        if not left.any():
            break
        able = counts < available
        order = able.long().cumsum(-1)
        each = (left // able.sum(-1).clamp(min=1)).unsqueeze(-1)
        more = each + (order <= (left - each.squeeze(-1) * able.sum(-1)).unsqueeze(-1)).long()
        counts = torch.minimum(counts + more * able, available)
    return counts
