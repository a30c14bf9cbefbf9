"""A decoder as arithmetic with its weights.

Legend: B rows (sequences), E hidden size, F feed-forward size, H query heads, K KV heads, D head size.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from keyhole.kernels.products.matrix import Matrix
from keyhole.kernels.products.multiply import VECTORS

MOST_ROWS = VECTORS


class Norm(NamedTuple):
    """RMSNorm, or LayerNorm where it is `centred`; without a weight it is 1."""

    weight: Tensor | None
    eps: float
    centred: bool = False


class Linear(NamedTuple):
    """A projection by a matrix `[out, in]`; bias `[out]`, float32 or bfloat16, beside that of the matrix."""

    matrix: Matrix
    bias: Tensor | None = None


class DecoderLayer(NamedTuple):
    """One layer; norms that it has not are None.

    Attributes:
        before_attention, before_forward: norms of what goes into attention and feed-forward.
        after_attention, after_forward: norms of what comes out, before it is added.
        query_norm, key_norm: over each head, or over all heads together (`DecoderSizes.norms_all_heads`).
        rotates: whether queries and keys are rotated.
    """

    query: Linear
    key: Linear
    value: Linear
    output: Linear
    gate: Linear
    up: Linear
    down: Linear
    before_attention: Norm | None = None
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    after_attention: Norm | None = None
    before_forward: Norm | None = None
    after_forward: Norm | None = None
    rotates: bool = True


class DecoderSizes(NamedTuple):
    """What all layers share.

    Attributes:
        residual: what both sums of a layer are multiplied by.
        embedding: what embeddings are multiplied by.
        clip: queries, keys and values are within it; 0 is no bound.
        dtype: of what goes in and comes out, float32 or bfloat16.
    """

    hidden: int
    forward: int
    heads: int
    kv_heads: int
    head_size: int
    norms_all_heads: bool = False
    residual: float = 1.0
    embedding: float = 1.0
    clip: float = 0.0
    dtype: torch.dtype = torch.float32

    @property
    def all_heads(self) -> int:
        """Heads of queries, keys and values."""
        return self.heads + 2 * self.kv_heads


class Decoder(NamedTuple):
    """All layers, and the norm behind the last."""

    sizes: DecoderSizes
    layers: tuple[DecoderLayer, ...]
    last: Norm


class DecoderStep(Protocol):
    """One step of up to 16 rows, in the order of the layers; buffers are used again by the next step.

    A step serves one thread at a time. What it returns is new memory.
    """

    def begin(self, embeddings: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Heads `[B, H + 2 K, 1, D]`, queries, keys and values, that the first layer attends with.

        Args:
            embeddings: `[B, E]`.
            cos, sin: float32 `[B or 1, R]`: the first R channels of a head are rotated, as two halves.
        """
        ...

    def attended(self, layer: int, out: Tensor) -> Tensor:
        """From attention `[B, H, 1, D]` of a layer to the heads of the next one.

        Behind the last layer: hidden states `[B, E]` after the last norm.
        """
        ...
