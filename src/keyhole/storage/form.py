"""How the keys and values of tokens are stored: a row holds those of a group of tokens, as one head has them.

Legend: B batch, H KV heads, T tokens, n rows, g tokens of a row, W width of a row, S slots,
D and E size of keys and of values.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor


class Kind(NamedTuple):
    """What tokens are like when they arrive: KV heads, sizes of keys and values, type, device."""

    heads: int
    keys: int
    values: int
    dtype: torch.dtype
    device: torch.device


class Form(ABC):
    """Packs tokens to rows and back. Keys and values share rows, so that one read fetches both.

    `group` tokens make a row. A form that `keeps` rows as they are lets attention read them in place.
    """

    group: int = 1
    keeps: bool = False

    @abstractmethod
    def pack(self, tokens: Tensor, kind: Kind) -> Tensor:
        """Rows `[B, H, n, W]` of `tokens [B, H, n * g, D + E]`, keys beside values."""

    @abstractmethod
    def keys(self, rows: Tensor, kind: Kind, slots: Tensor | None = None) -> Tensor:
        """Keys in `rows [B, H, n, W]`: all, `[B, H, n * g, D]`, or of `slots [B, H, S]`, `[B, H, S, D]`."""

    @abstractmethod
    def values(self, rows: Tensor, kind: Kind, slots: Tensor | None = None) -> Tensor:
        """Values, as `keys`."""

    @abstractmethod
    def token_bytes(self, kind: Kind) -> float:
        """Bytes of one token for one head."""


class Full(Form):
    """As the model makes them."""

    keeps = True

    def pack(self, tokens: Tensor, kind: Kind) -> Tensor:  # noqa: ARG002
        return tokens

    def keys(self, rows: Tensor, kind: Kind, slots: Tensor | None = None) -> Tensor:
        return _chosen(rows[..., : kind.keys], slots)

    def values(self, rows: Tensor, kind: Kind, slots: Tensor | None = None) -> Tensor:
        return _chosen(rows[..., kind.keys :], slots)

    def token_bytes(self, kind: Kind) -> float:
        return (kind.keys + kind.values) * kind.dtype.itemsize


def _chosen(rows: Tensor, slots: Tensor | None) -> Tensor:
    return rows if slots is None else at(rows, slots)


def at(tensor: Tensor, *places: Tensor) -> Tensor:
    """Rows `[B, H, S, D]` of a tensor `[B, H, ..., D]`, of any strides.

    `places` are integers `[B, H, S]`, one tensor for each dimension between H and D.
    """
    sizes, strides = tensor.shape[:-1], tensor.stride()[:-1]
    batch = torch.arange(sizes[0], device=tensor.device).view(-1, 1, 1)
    heads = torch.arange(sizes[1], device=tensor.device).view(1, -1, 1)
    # A selection along one dimension copies whole rows; torch's indexing by several tensors is far slower.
    unit = math.gcd(*strides) or 1
    index = (batch, heads, *places)
    offset = reduce(torch.add, (part.long() * stride for part, stride in zip(index, strides, strict=True)))
    count = 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)) // unit
    rows = tensor.as_strided((count, tensor.shape[-1]), (unit, tensor.stride(-1)))
    return rows.index_select(0, offset.flatten() // unit).view(*places[0].shape, -1)
