"""Attention over the blocks that a rule selects, as a layer in training calls it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from keyhole.selection.block_lists import BlockRule, sequence_lists
from keyhole.training.continued.block_sparse import block_sparse_attention
from keyhole.training.continued.importance import Importance


class SelectedAttention:
    """Of all layers; selections have no gradient, so that importance learns by the bias alone."""

    def __init__(self, rule: BlockRule, importance: Sequence[Importance] | None = None) -> None:
        self.rule, self.importance = rule, importance

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        bias = None if self.importance is None else self.importance[layer](value)
        with torch.no_grad():
            lists = sequence_lists(query, key, bias, self.rule, scale=scale)
        return block_sparse_attention(query, key, value, lists, block=self.rule.block, scale=scale, bias=bias)
