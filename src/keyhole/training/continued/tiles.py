"""A tile: consecutive queries of one KV head, with the keys that any of them reads.

G query heads per KV head, T queries in a tile, C keys that at least one of them reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

ROWS = 32  # neighbours choose much the same blocks; more of them read more keys in vain


class Tile(NamedTuple):
    """Attributes:
    queries: places of its queries among all of them.
    keys: positions of its keys, int64 [C], ascending.
    reads: which query reads which key, bool [T, C].
    """

    queries: slice
    keys: Tensor
    reads: Tensor


def check_lists(blocks: Tensor, tokens: int, block: int) -> None:
    """Raises ValueError unless the lists are int32 or int64 with entries from -1 to the last block."""
    if blocks.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"block lists are of {blocks.dtype}; give int32 or int64")
    last = -(-tokens // block) - 1
    if blocks.numel() and not -1 <= int(blocks.min()) <= int(blocks.max()) <= last:
        found = f"{int(blocks.min())} to {int(blocks.max())}"
        raise ValueError(
            f"block lists name blocks {found}; {tokens} tokens have blocks 0 to {last}, -1: none"
        )


def tiles(lists: Tensor, block: int, tokens: int) -> Iterator[Tile]:
    """Tiles of the block lists `[Q, K]` of one KV head, of the last Q of `tokens`.

    A query reads its blocks up to itself.

    Queries of which none has a block are in no tile.
    """
    queries = lists.shape[0]
    before, count = tokens - queries, -(-tokens // block)
    inside = torch.arange(block, device=lists.device)
    for first in range(0, queries, ROWS):
        part = lists[first : first + ROWS].long()
        chosen = torch.zeros(len(part), count + 1, dtype=torch.bool, device=lists.device)
        chosen.scatter_(1, part.where(part >= 0, count), True)  # unused entries go to a column of their own
        read = chosen[:, :count].any(0).nonzero()[:, 0]
        if not len(read):
            continue
        keys = (read[:, None] * block + inside).flatten()
        reads = chosen.index_select(1, read).repeat_interleave(block, 1)
        own = torch.arange(before + first, before + first + len(part), device=lists.device)
        reads &= keys <= own[:, None]
        within = keys < tokens
        yield Tile(slice(first, first + len(part)), keys[within], reads[:, within])
