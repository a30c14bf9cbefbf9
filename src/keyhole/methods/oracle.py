"""Exact top-k: what a selector of any kind could at best find."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.model_info import ModelInfo
from keyhole.methods.base import RetrievalMethod
from keyhole.methods.facts import Differs, Facts
from keyhole.selection import ExactSelector, Selector


@dataclass(frozen=True)
class Oracle(RetrievalMethod):
    """Scores every key exactly, then reads the best: the bound of accuracy, not of speed."""

    name: ClassVar[str] = "oracle"
    paper: ClassVar[str] = "exact top-k, the bound papers compare with"
    summary: ClassVar[str] = "exact logits of all keys, best tokens read"
    facts: ClassVar[Facts] = Facts(
        stored="No index: the keys themselves are scored.",
        select="Exact logits of every key, then a ranking of N tokens for each KV head.",
        best_for="Judging other methods: the attention it misses, no choice of as many tokens can hold.",
        weak_at="Reads every key in every step, so at D = Dv it reads no less than half of what dense does.",
        scan="D * e * N",
        products="G * D * N",
        differs=(Differs("dense_below", "-", "it is asked for to select, not to be fast"),),
    )

    dense_below: int | str = 0

    def selectors(self, info: ModelInfo) -> list[Selector]:
        return [ExactSelector() for _ in info.layers]
