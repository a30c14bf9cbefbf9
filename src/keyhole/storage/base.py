"""Place: where kept keys and values live."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor


class Footprint(NamedTuple):
    """Bytes held on each tier."""

    device: int = 0
    host: int = 0
    disk: int = 0

    def __add__(self, other: Footprint) -> Footprint:  # type: ignore[override]
        return Footprint(*(a + b for a, b in zip(self, other, strict=True)))


class Storage(ABC):
    """Keys and values of one layer, addressed by token slot: slot t is the t-th token kept."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Tokens held."""

    @abstractmethod
    def append(self, keys: Tensor, values: Tensor) -> None:
        """Add `keys [B, Hkv, T, D]` (after RoPE) and `values [B, Hkv, T, Dv]`."""

    @abstractmethod
    def view(self) -> tuple[Tensor, Tensor]:
        """All keys and values, `[B, Hkv, length, D]` each."""

    @abstractmethod
    def crop(self, length: int) -> None:
        """Forget every slot from `length` on."""

    @abstractmethod
    def reorder(self, rows: Tensor) -> None:
        """Take the batch rows `rows`, in that order."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """What is held, as named tensors; views where possible."""

    @abstractmethod
    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` of an equal storage returned, forgetting what was here."""

    @property
    @abstractmethod
    def footprint(self) -> Footprint:
        """Bytes held, by tier."""
