"""A token has the score of its window (WindowKV).

Source: "WindowKV: Task-Adaptive Group-Wise KV Cache Window Selection for Efficient LLM Inference",
arXiv 2503.17922.

Legend: B batch, Hkv KV heads, G query heads of each, N slots, W windows, P tokens of a window.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.retention.kept import Kept
from keyhole.retention.observed import Observed
from keyhole.storage import Storage


class WindowScores(Observed):
    """The mean, over the best tokens of a window, of the attention that the newest tokens pay to them.

    Windows are runs of `size` kept tokens between sinks and newest tokens, the last as long as it is. All
    tokens of a window have the same score, so the best tokens are whole windows, and of the
    last one as much as there is room for.

    Args:
        window: newest tokens, whose attention counts.
        sinks: first tokens, which are in no window.
        size: tokens of a window.
        best: tokens of a window that count; all where they are fewer.
        per_head: each KV head by its own query heads; else all heads of a layer have the same scores.
    """

    def __init__(self, window: int, sinks: int, size: int, best: int, *, per_head: bool) -> None:
        super().__init__(window)
        self.sinks, self.size, self.best, self.per_head = sinks, size, min(best, size), per_head

    def scores(self, storage: Storage, kept: Kept) -> Tensor:
        attention = self.attention(storage, kept, by_head=True)
        if attention is None:
            return kept.positions.float()
        begin = (kept.filling + self.sinks).unsqueeze(-1)
        lengths = (kept.slots - self.window - begin).clamp(min=0)
        scores = self._window_scores(attention, begin, lengths)
        windows = (torch.arange(kept.slots, device=begin.device) - begin) // self.size
        return scores.gather(-1, windows.clamp(0, scores.shape[-1] - 1))

    def _window_scores(self, attention: Tensor, begin: Tensor, lengths: Tensor) -> Tensor:
        """Float32 `[B, Hkv, W]` of `attention [B, Hkv, G, N]`, of which so many slots from `begin` count."""
        width = max(1, -(-int(lengths.max()) // self.size)) * self.size
        index = torch.arange(width, device=begin.device)
        counted = (index < lengths).unsqueeze(2)
        slots = (
            (begin + index).clamp(max=attention.shape[-1] - 1).unsqueeze(2).expand(*attention.shape[:3], -1)
        )
        # Attention is never negative, so what does not count adds nothing and is never among the best.
        windows = attention.gather(-1, slots).masked_fill(~counted, 0.0).unflatten(-1, (-1, self.size))
        sums = windows.topk(self.best).values.sum(-1) if self.best < self.size else windows.sum(-1)
        counts = counted.unflatten(-1, (-1, self.size)).sum(-1).clamp(1, self.best)
        scores = (sums / counts).mean(2)
        return scores if self.per_head else scores.mean(1, keepdim=True).expand_as(scores)
