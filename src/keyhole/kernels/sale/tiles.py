"""Tiles of a prompt's attention and their bit maps.

Shapes: B batch, H query heads, Q queries, N tokens, T = ceil(Q / rows) groups of queries that read the same
keys, W = ceil(N / 32) words of a group's map.
"""

from typing import NamedTuple

import torch
from torch import Tensor

ROWS = 64  # queries of a tile
BLOCK = 32  # keys of a word
WIDTHS = (1, 2, 4, 8, 16, 32)  # of runs of keys
SHARING = (16, 32, 64)  # queries that read the same keys
_SUMS = 2**15 - 1  # what 16-bit sums hold


class Reach(NamedTuple):
    """What a tile of queries reads for certain, and in which runs it reads the rest.

    Attributes:
        sinks: first tokens always read; whole blocks of 32 are.
        window: tokens before a tile's first query that are always read.
        width: keys that are read or left out together, a power of two up to 32.
        pooled: whether shares are relative to what blocks that may be left out hold at least, too.
        rows: consecutive queries of a tile that read the same keys: 16, 32 or 64.
        means: whether keys that are left out of a block of 32 count as so many of their mean key, with their
            mean value; else they count for nothing.
    """

    sinks: int = 32
    window: int = 128
    width: int = 32
    pooled: bool = True
    rows: int = ROWS
    means: bool = False


class Rounding(NamedTuple):
    """How the estimate rounds keys and queries; what is kept depends on it, a little.

    Attributes:
        levels: the largest integer.
        run: consecutive keys that share a scale; a query has its own.
    """

    levels: int
    run: int = 16


class SparseAttended(NamedTuple):
    """Attention of a prompt.

    Attributes:
        out: `[B, H, Q, Dv]`, dtype of the query.
        kept: int32 `[B, H, T]`, keys that each group of queries reads, before the causal mask.
        map: int32 `[B, H, T, W]`, a bit for each key a group reads, counted from its row's first token, the
            lowest bit first; None unless asked for.
    """

    out: Tensor
    kept: Tensor
    map: Tensor | None


class Tile(NamedTuple):
    """One tile of one batch row; positions count from the row's first token.

    Attributes:
        rows: its queries, `[start, stop)` among those given.
        first: the position of its first query.
        begin: where candidates begin, after the sinks.
        end: where they end; `begin == end` where everything is read.
    """

    rows: tuple[int, int]
    first: int
    begin: int
    end: int


def tiles(queries: int, tokens: int, unused: int, reach: Reach) -> list[Tile]:
    """The tiles of a batch row with `unused` slots of padding at its start."""
    length = tokens - unused
    skipped = max(queries - length, 0)
    found = []
    for start in range(skipped, queries, ROWS):
        first = length - queries + start
        begin = -(-reach.sinks // BLOCK) * BLOCK
        end = max(first - reach.window, 0) // BLOCK * BLOCK
        where = (begin, end) if begin < end else (0, 0)
        found.append(Tile((start, min(start + ROWS, queries)), first, *where))
    return found


def levels(size: int) -> int:
    """The largest integer of queries and keys of a head, so that sums of products fit into 16 bits."""
    return min(63, max(1, int((_SUMS / size) ** 0.5)))


def pack(wanted: Tensor) -> Tensor:
    """Bits of bool [..., N] as int32 words [..., W], the lowest bit first."""
    words = torch.nn.functional.pad(wanted, (0, -wanted.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    weights = 1 << torch.arange(BLOCK, device=wanted.device)
    return (words * weights).sum(-1).to(torch.int32)  # wraps where the highest bit is set


def unpack(words: Tensor, tokens: int) -> Tensor:
    """Bool [..., tokens] of int32 words [..., W]."""
    bits = words.unsqueeze(-1) >> torch.arange(BLOCK, dtype=torch.int32, device=words.device)
    return (bits & 1).bool().flatten(-2)[..., :tokens]
