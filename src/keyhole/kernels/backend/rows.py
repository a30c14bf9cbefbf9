"""Rows of a tensor of any strides, picked by integers."""

import math
from functools import reduce

import torch
from torch import Tensor


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
    return rows.index_select(0, offset.flatten() // unit).view(*places[0].shape, tensor.shape[-1])
