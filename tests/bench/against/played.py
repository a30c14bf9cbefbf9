"""Engines that compute nothing: they count calls, in a process of their own as real ones do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Played:
    """Predicts token `favourite`; dies or raises at a step if asked to."""

    favourite: int = 3
    fails: str = ""
    calls: list[str] = field(default_factory=list)

    def about(self) -> str:
        return "played 1.0"

    def start(self, capacity: int) -> None:
        self.calls.append(f"start {capacity}")

    def read(self, ids: Sequence[int]) -> None:
        self.calls.append(f"read {len(ids)}")

    def fill(self, tokens: int) -> None:
        self.calls.append(f"fill {tokens}")

    def step(self) -> None:
        if self.fails == "raises":
            raise ValueError("no more tokens")
        if self.fails == "dies":
            os._exit(7)
        self.calls.append("step")

    def logits(self) -> np.ndarray:
        return 20 * np.eye(5, dtype=np.float32)[self.favourite]

    def seen(self) -> list[str]:
        return self.calls
