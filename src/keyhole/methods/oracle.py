"""Exact top-k: what a selector of any kind could at best find."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.methods.base import RetrievalMethod
from keyhole.selection import ExactSelector, Selector


@dataclass(frozen=True)
class Oracle(RetrievalMethod):
    """Scores every key exactly, then reads the best: the bound of accuracy, not of speed."""

    name: ClassVar[str] = "oracle"
    paper: ClassVar[str] = "exact top-k, the bound papers compare with"
    summary: ClassVar[str] = "exact logits of all keys, best tokens read"

    def selectors(self, layers: int) -> list[Selector]:
        return [ExactSelector() for _ in range(layers)]
