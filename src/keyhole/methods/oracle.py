"""Exact top-k: what a selector of any kind could at best find."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.methods.base import RetrievalMethod
from keyhole.selection import ExactSelector, Selector
from keyhole.setting import Setting


@dataclass(frozen=True)
class Oracle(RetrievalMethod):
    """Scores every key exactly, then reads the best: the bound of accuracy, not of speed."""

    name: ClassVar[str] = "oracle"
    paper: ClassVar[str] = "exact top-k, the bound papers compare with"
    summary: ClassVar[str] = "exact logits of all keys, best tokens read"

    dense_below: int | str = 0

    def selectors(self, setting: Setting) -> list[Selector]:
        return [ExactSelector() for _ in setting.layers]
