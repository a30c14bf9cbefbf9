"""Retain: which tokens are kept at all."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class Retention(ABC):
    """Decides, as keys arrive, which tokens of a layer are stored."""

    @abstractmethod
    def admit(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Take new `keys`, `values [B, Hkv, T, D]`; returns what of them is to be stored."""
