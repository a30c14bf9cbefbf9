"""Slots of a paged cache: slot s of request b is in block table[b, s // block size], at s % block size.

Shapes: B requests, W blocks of a table's row, H KV heads.
"""

import torch
from torch import Tensor

from keyhole.kernels.backend.signatures import Pages


def pages_of(cache: Tensor, table: Tensor) -> Pages:
    """The native form of a `table`, contiguous int32 [B, W], into a cache [blocks, block size, H, ...].

    The caller keeps the table alive.
    """
    blocks, block_size, heads = cache.shape[:3]
    return Pages(table.data_ptr(), table.stride(0), block_size, blocks, heads)


def in_one_piece(cache: Tensor, table: Tensor, begin: Tensor, end: Tensor) -> Tensor:
    """A copy [B, H, W * block size, ...] of a cache [blocks, block size, H, ...].

    Of request b it is the cache's in [begin[b], end[b]), and anything elsewhere.

    Raises:
        ValueError: a slot of these is outside the cache.
    """
    starts = torch.arange(table.shape[1], device=table.device) * cache.shape[1]
    begin, end = begin.unsqueeze(1), end.unsqueeze(1)
    needed = (starts + cache.shape[1] > begin) & (starts < end) & (begin < end)
    blocks = table.long()
    if (needed & ((blocks < 0) | (blocks >= len(cache)))).any():
        raise ValueError(f"a slot is outside the cache: its block is not one of 0..{len(cache) - 1}")
    return cache[blocks.masked_fill(~needed, 0)].flatten(1, 2).transpose(1, 2)
