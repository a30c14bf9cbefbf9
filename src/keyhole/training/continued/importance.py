"""Importance heads as modules that are trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from keyhole.selection.importance import ImportanceHead


class Importance(nn.Module):
    """The head of one layer. Its `scale` begins at 0, so that a model begins unchanged."""

    def __init__(self, kv_heads: int, value_size: int, *, bias: bool, generator: torch.Generator) -> None:
        super().__init__()
        head = ImportanceHead.initial(kv_heads, value_size, bias=bias, generator=generator)
        self.weight, self.scale = nn.Parameter(head.weight), nn.Parameter(head.scale)
        self.bias = None if head.bias is None else nn.Parameter(head.bias)

    @property
    def head(self) -> ImportanceHead:
        return ImportanceHead(self.weight, self.scale, self.bias)

    def forward(self, value: Tensor) -> Tensor:
        """The importance float32 `[B, Hkv, L]` of tokens by `value [B, Hkv, L, Dv]`."""
        return self.head(value)
