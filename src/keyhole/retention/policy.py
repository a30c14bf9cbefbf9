"""How much of a layer is kept, and when the rest is dropped."""

from __future__ import annotations

from typing import NamedTuple

from keyhole.core.budget import Budget
from keyhole.retention.layers import LayerShare


class EvictionPolicy(NamedTuple):
    """How much of a layer is kept, and when the rest is dropped.

    Attributes:
        budget: tokens kept for each head; sinks and window are among them.
        share: the layer's part of it.
        sinks: first tokens of the text, which are always kept.
        window: newest tokens, which are always kept.
        every: generated tokens after which tokens are dropped again; 0 is never.
        whole_prompt: drop only when the prompt is complete, not after each piece of it.
        recent: share of what is kept that is the newest tokens, where that is more than the window.
    """

    budget: Budget
    share: LayerShare
    sinks: int
    window: int
    every: int
    whole_prompt: bool
    recent: float = 0.0

    def limit(self, context: int) -> int:
        """Tokens to keep of a context of so many."""
        return max(self.share.of(self.budget.limit(context), context), self.sinks + self.window)

    def newest(self, limit: int) -> int:
        """How many of the newest tokens are always kept, of so many in all."""
        return min(max(self.window, int(self.recent * limit)), limit - self.sinks)
