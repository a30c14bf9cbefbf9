"""Causal attention over lists of blocks, with a bias on keys, forward and backward.

B rows, H query heads, Hkv KV heads (query head h reads KV head h // G), L tokens, Q queries, D and Dv
head sizes. Both passes go through one tile of queries at a time and keep no probabilities, so that memory
grows with L, not with its square.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from keyhole.training.continued.tiles import Tile, check_lists, tiles

_LEAST = -60.0  # of a logit below the greatest: e^-60 is nothing to a float64


def block_sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Tensor,
    *,
    block: int,
    scale: float,
    bias: Tensor | None = None,
) -> Tensor:
    """`softmax(q.k * scale + bias) v` over the keys of each query's blocks up to itself.

    Args:
        query: `[B, H, Q, D]`, of the last Q tokens.
        key: `[B, Hkv, L, D]`.
        value: `[B, Hkv, L, Dv]`.
        blocks: int `[B, Hkv, Q, K]`: the blocks of `block` tokens each query reads, in any order, -1 for
            none. No gradient flows to them.
        bias: `[B, Hkv, L]`, added to the logits of each key; the weight of key j is multiplied by
            `exp(bias_j)`.

    Returns:
        `[B, H, Q, Dv]`; 0 for a query that reads nothing.

    Raises:
        ValueError: a list names a block that does not exist.
    """
    check_lists(blocks, key.shape[2], block)
    if bias is None:
        bias = key.new_zeros(key.shape[:3])
    return _BlockSparse.apply(query, key, value, bias, blocks, block, scale)


class _BlockSparse(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor,
        blocks: Tensor,
        block: int,
        scale: float,
    ) -> Tensor:
        out = query.new_zeros(*query.shape[:3], value.shape[3])
        lse = torch.zeros(query.shape[:3], dtype=_wide(query), device=query.device)
        for b, g, heads in _heads(query, key):
            for tile in tiles(blocks[b, g], block, key.shape[2]):
                logits = _logits(tile, query[b, heads], key[b, g], bias[b, g], scale)
                most = logits.amax(-1, keepdim=True).clamp_(min=torch.finfo(logits.dtype).min)
                weights = _weights(tile, logits, most)
                total = weights.sum(-1, keepdim=True).clamp_(min=torch.finfo(logits.dtype).tiny)
                read = weights @ value[b, g].index_select(0, tile.keys).to(weights) / total
                out[b, heads, tile.queries] = read.to(out.dtype)
                lse[b, heads, tile.queries] = (most + total.log())[..., 0]
        context.save_for_backward(query, key, value, bias, blocks, out, lse)
        context.block, context.scale = block, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias, blocks, out, lse = context.saved_tensors
        (d_out,) = gradients
        wide = _wide(query)
        found = [torch.zeros(x.shape, dtype=wide, device=x.device) for x in (query, key, value, bias)]
        d_query, d_key, d_value, d_bias = found
        inner = (d_out.to(wide) * out).sum(-1, keepdim=True)
        for b, g, heads in _heads(query, key):
            for tile in tiles(blocks[b, g], context.block, key.shape[2]):
                rows, keys = tile.queries, tile.keys
                logits = _logits(tile, query[b, heads], key[b, g], bias[b, g], context.scale)
                weights = _weights(tile, logits, lse[b, heads, rows, None])
                d_read = d_out[b, heads, rows].to(wide)
                d_value[b, g].index_add_(0, keys, _product(weights, d_read))
                read = _turned(value[b, g].index_select(0, keys), d_read)
                d_logits = torch.baddbmm(-inner[b, heads, rows], d_read, read).mul_(weights)
                d_bias[b, g].index_add_(0, keys, d_logits.sum((0, 1)))
                d_query[b, heads, rows] = d_logits @ key[b, g].index_select(0, keys).to(wide) * context.scale
                asked = query[b, heads, rows].to(wide) * context.scale
                d_key[b, g].index_add_(0, keys, _product(d_logits, asked))
        inputs = (query, key, value, bias)
        return *(d.to(x.dtype) for d, x in zip(found, inputs, strict=True)), None, None, None


def _wide(x: Tensor) -> torch.dtype:
    """Logits and softmax are float32, or float64 where the inputs are."""
    return torch.promote_types(x.dtype, torch.float32)


def _heads(query: Tensor, key: Tensor) -> list[tuple[int, int, slice]]:
    """Row, KV head, and the query heads that read it."""
    rows, heads, group = key.shape[0], key.shape[1], query.shape[1] // key.shape[1]
    return [(b, g, slice(g * group, (g + 1) * group)) for b in range(rows) for g in range(heads)]


def _logits(tile: Tile, query: Tensor, key: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Logits [G, T, C] of a tile, -inf where a query does not read a key."""
    asked = query[:, tile.queries].to(_wide(query)) * scale
    added = bias[tile.keys].to(asked.dtype).where(tile.reads, -torch.inf)
    return torch.baddbmm(added, asked, _turned(key.index_select(0, tile.keys), asked))


def _weights(tile: Tile, logits: Tensor, shift: Tensor) -> Tensor:
    """`exp(logits - shift)` in place, 0 where a query does not read a key.

    Exponentials that are 0 or subnormal take ten times as long as others.
    """
    return logits.sub_(shift).clamp_(min=_LEAST).exp_().mul_(tile.reads.to(logits.dtype))


def _turned(rows: Tensor, other: Tensor) -> Tensor:
    """`rows [C, D]` as `[G, D, C]` beside `other [G, T, D]`."""
    return rows.to(other.dtype).T.expand(len(other), -1, -1)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """`[C, D]` of `[G, T, C]` and `[G, T, D]`, summed over queries and their heads."""
    return left.flatten(0, 1).T @ right.flatten(0, 1)
