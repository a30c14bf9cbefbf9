"""How the keys and values of tokens are stored: a row holds those of a group of tokens, as one head has them.

Legend: B batch, H KV heads, T tokens, n rows, g tokens of a row, W width of a row, S slots,
D and E size of keys and of values.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from keyhole.attention import Logits, Part, attend_slots
from keyhole.kernels.backend.rows import at

__all__ = ["Form", "Full", "TokenSpec", "at"]


class TokenSpec(NamedTuple):
    """What tokens are like when they arrive: KV heads, sizes of keys and values, type, device."""

    heads: int
    keys: int
    values: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, keys: Tensor, values: Tensor) -> TokenSpec:
        """Of `keys [B, H, T, D]` and `values [B, H, T, E]`."""
        return cls(keys.shape[1], keys.shape[-1], values.shape[-1], keys.dtype, keys.device)


class Form(ABC):
    """Packs tokens to rows and back. Keys and values share rows, so that one read fetches both.

    `group` tokens make a row; the `first` ones of a text are kept beside the rows, as they came. Where rows
    are tokens as they came, attention reads them `in_place`; a `lossless` form gives them back as they came.
    """

    group: int = 1
    first: int = 0
    in_place: bool = False
    lossless: bool = False

    @abstractmethod
    def pack(self, tokens: Tensor, kind: TokenSpec) -> Tensor:
        """Rows `[B, H, n, W]` of `tokens [B, H, n * g, D + E]`, keys beside values."""

    @abstractmethod
    def keys(self, rows: Tensor, kind: TokenSpec, slots: Tensor | None = None) -> Tensor:
        """Keys in `rows [B, H, n, W]`: all, `[B, H, n * g, D]`, or of `slots [B, H, S]`, `[B, H, S, D]`."""

    @abstractmethod
    def values(self, rows: Tensor, kind: TokenSpec, slots: Tensor | None = None) -> Tensor:
        """Values, as `keys`."""

    @abstractmethod
    def attend(
        self, query: Tensor, rows: Tensor, kind: TokenSpec, slots: Tensor, counts: Tensor, logits: Logits
    ) -> Part:
        """Attention of `query [B, G * H, D]` over the first `counts [B, H]` of `slots [B, H, S]`."""

    @abstractmethod
    def token_bytes(self, kind: TokenSpec) -> float:
        """Bytes of one token for one head."""


class Full(Form):
    """As the model makes them."""

    in_place = True
    lossless = True

    def pack(self, tokens: Tensor, kind: TokenSpec) -> Tensor:  # noqa: ARG002
        return tokens

    def keys(self, rows: Tensor, kind: TokenSpec, slots: Tensor | None = None) -> Tensor:
        return _chosen(rows[..., : kind.keys], slots)

    def values(self, rows: Tensor, kind: TokenSpec, slots: Tensor | None = None) -> Tensor:
        return _chosen(rows[..., kind.keys :], slots)

    def attend(
        self, query: Tensor, rows: Tensor, kind: TokenSpec, slots: Tensor, counts: Tensor, logits: Logits
    ) -> Part:
        return attend_slots(query, self.keys(rows, kind), self.values(rows, kind), slots, counts, logits)

    def token_bytes(self, kind: TokenSpec) -> float:
        return (kind.keys + kind.values) * kind.dtype.itemsize


def _chosen(rows: Tensor, slots: Tensor | None) -> Tensor:
    return rows if slots is None else at(rows, slots)
