"""Exact top-k: what a selector of any kind could at best find."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.budget import Budget
from keyhole.core.model_info import ModelInfo
from keyhole.methods import options
from keyhole.methods.base import READ, RetrievalMethod
from keyhole.methods.facts import Differs, Facts
from keyhole.selection import ExactSelector, Selector


@dataclass(frozen=True)
class Oracle(RetrievalMethod):
    """Exact top-k: the upper bound on accuracy at a token budget, not a way to save time."""

    name: ClassVar[str] = "oracle"
    paper: ClassVar[str] = "exact top-k, the bound papers compare with"
    summary: ClassVar[str] = "exact top-k over the logits of all keys"
    facts: ClassVar[Facts] = Facts(
        stored="No index: the keys themselves are scored.",
        select="Exact logits of every key, then a ranking of N tokens per KV head.",
        best_for="Evaluating other methods: the upper bound on recall of attention mass at a token budget.",
        weak_at="Reads every key in every step, so with D = Dv it reads at least half of what dense "
        "attention does.",
        scan="D * e * N",
        products="G * D * N",
        differs=(Differs("dense_below", "-", "used to measure selection, not to be fast"),),
    )

    budget: Budget = options.budget(Budget(fraction=0.1), error=True, unit="tokens", help=READ)
    dense_below: int | str = 0

    def selectors(self, info: ModelInfo) -> list[Selector]:
        return [ExactSelector() for _ in info.layers]
