"""Attention over the blocks that a rule selects, as a layer in training calls it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from keyhole.attention import Logits, dense_attention
from keyhole.attention.biased import biased_prompt_attention, with_bias
from keyhole.selection.block_lists import BlockRule, sequence_lists
from keyhole.training.continued.block_sparse import block_sparse_attention
from keyhole.training.continued.importance import Importance


class SelectedAttention:
    """Of all layers; selections have no gradient, so that importance learns by the bias alone.

    Attributes:
        prompt: as many first tokens of a row read all tokens before them, as in the prompt of a decode step;
            the others read their blocks.
    """

    def __init__(self, rule: BlockRule, importance: Sequence[Importance] | None = None) -> None:
        self.rule, self.importance = rule, importance
        self.prompt = 0

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        bias = None if self.importance is None else self.importance[layer](value)
        asking, block = query[:, :, self.prompt :], self.rule.block
        with torch.no_grad():
            lists = sequence_lists(asking, key, bias, self.rule, scale=scale)
        read = block_sparse_attention(asking, key, value, lists, block=block, scale=scale, bias=bias)
        if not self.prompt:
            return read
        parts = (query, key, value) if bias is None else (query, key, value, bias)
        return torch.cat([_dense(scale, *(part[:, :, : self.prompt] for part in parts)), read], dim=2)


def _dense(scale: float, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """Causal attention to everything, by the call that computes prompts."""
    if bias is None:
        return dense_attention(query, key, value, scale=scale)
    return biased_prompt_attention(query, with_bias(key, bias), value, Logits(scale), None)
