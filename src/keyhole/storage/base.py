"""Place: where kept keys and values live."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

from keyhole.attention import Logits, Part
from keyhole.regions import Regions


class Footprint(NamedTuple):
    """Bytes held on each tier."""

    device: int = 0
    host: int = 0
    disk: int = 0

    def __add__(self, other: Footprint) -> Footprint:  # type: ignore[override]
        return Footprint(*(a + b for a, b in zip(self, other, strict=True)))


class Lookups(NamedTuple):
    """Tokens that were read from resident blocks of a slower tier, and past them."""

    hits: int = 0
    misses: int = 0


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
    def keys(self, start: int = 0) -> Tensor:
        """Keys from slot `start` on, `[B, Hkv, length - start, D]`: a view where they are stored so."""

    @abstractmethod
    def values(self, start: int = 0) -> Tensor:
        """Values from slot `start` on, as `keys`."""

    @abstractmethod
    def attend(self, query: Tensor, slots: Tensor, counts: Tensor, logits: Logits) -> Part:
        """Exact attention of `query [B, H, D]` over chosen slots.

        Args:
            slots: int32 `[B, S]`, the same for all heads, or `[B, Hkv, S]`.
            counts: int32 `[B]` or `[B, Hkv]`, how many of a row's slots are meant.

        Returns:
            The part, out `[B, H, Dv]` and lse `[B, H]`.
        """

    @property
    @abstractmethod
    def token_bytes(self) -> float:
        """Bytes of one token's keys and values, all KV heads of a batch row."""

    @property
    def lookups(self) -> Lookups:
        """Reads counted by a block cache; none without one."""
        return Lookups()

    def settle(self, regions: Regions) -> None:  # noqa: B027 - most have nothing to do
        """Told before each selective step: what lies before `regions.last` is from now on read in parts."""

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
