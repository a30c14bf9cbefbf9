"""The definition of block-sparse attention of a prompt, in plain torch, a tile at a time.

Shapes: R queries of a tile, N tokens of a batch row without its padding, D and Dv sizes of keys and values,
C candidates among the keys.
"""

import torch
from torch import Tensor

from keyhole.kernels.sale_tiles import (
    BLOCK,
    ROWS,
    Reach,
    Rounding,
    SparseAttended,
    Tile,
    pack,
    tiles,
)


def attend_reference(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    tau: Tensor,
    scale: float,
    reach: Reach,
    padding: tuple[int, ...],
    with_map: bool,
    rounding: Rounding,
) -> SparseAttended:
    """As `keyhole.kernels.sale_attention`, of operands that were checked, by estimates of any `rounding`."""
    batch, heads, queries, _ = query.shape
    tokens, groups = keys.shape[2], heads // keys.shape[1]
    counts = -(-queries // ROWS)
    out = query.new_zeros(*query.shape[:3], values.shape[3])
    kept = torch.zeros(batch, heads, counts, dtype=torch.int32, device=query.device)
    words = kept.new_zeros(*kept.shape, -(-tokens // BLOCK)) if with_map else None
    for row, unused in enumerate(padding):
        where = tiles(queries, tokens, unused, reach)
        for head in range(heads):
            sides = keys[row, head // groups, unused:].float(), values[row, head // groups, unused:].float()
            small = small_keys(sides[0], rounding)
            for number, tile in enumerate(where):
                rows = slice(*tile.rows)
                asked = query[row, head, rows].float() * scale
                some = small_queries(asked, rounding)
                wanted = select(asked, some, sides[0], small, float(tau[head]), tile, reach)
                out[row, head, rows] = _attend(asked, *sides, wanted, tile).to(out)
                kept[row, head, number] = wanted.sum()
                if words is not None:
                    packed = pack(wanted)
                    words[row, head, number, : len(packed)] = packed
    return SparseAttended(out, kept, words)


def small_keys(keys: Tensor, rounding: Rounding) -> Tensor:
    """Keys [N, D] less their mean, rounded to a few levels with one scale for each run."""
    shifted = keys - keys.mean(0)
    runs = torch.nn.functional.pad(shifted, (0, 0, 0, -len(keys) % rounding.run))
    runs = runs.unflatten(0, (-1, rounding.run))
    most = runs.abs().amax((1, 2), keepdim=True)
    return _rounded(runs, most, rounding.levels).flatten(0, 1)[: len(keys)]


def small_queries(query: Tensor, rounding: Rounding) -> Tensor:
    """Queries [R, D], rounded to a few levels with a scale each."""
    return _rounded(query, query.abs().amax(-1, keepdim=True), rounding.levels)


def _rounded(x: Tensor, most: Tensor, levels: int) -> Tensor:
    step = most / levels
    step = torch.where(step > 0, step, 1.0)
    return (x / step).round() * step


def select(
    query: Tensor, some: Tensor, keys: Tensor, small: Tensor, tau: float, tile: Tile, reach: Reach
) -> Tensor:
    """Which keys a tile of scaled queries [R, D] reads, of those up to its last query: bool.

    `some` and `small` are rounded queries and keys.
    """
    wanted = torch.ones(tile.first + len(query), dtype=torch.bool, device=keys.device)
    if tau == 0 or tile.begin == tile.end:
        return wanted
    candidates = slice(tile.begin, tile.end)
    wanted[candidates] = False
    lse = _logits(query, keys, wanted, tile).logsumexp(-1)
    if reach.pooled:
        # The exponential of a mean is no more than the mean of exponentials.
        means = keys[candidates].unflatten(0, (-1, BLOCK)).mean(1)
        least = (query @ means.T).logsumexp(-1) + torch.log(torch.tensor(float(BLOCK)))
        lse = torch.logaddexp(lse, least)
    estimates = some @ small[candidates].T + (query @ keys.mean(0)).unsqueeze(-1)
    passing = (estimates > (lse + torch.log(torch.tensor(tau))).unsqueeze(-1)).any(0)
    wanted[candidates] = passing.unflatten(0, (-1, reach.width)).any(-1).repeat_interleave(reach.width)
    return wanted


def _logits(query: Tensor, keys: Tensor, wanted: Tensor, tile: Tile) -> Tensor:
    """Exact logits [R, N] of a tile, -inf where a key is not wanted or comes later."""
    positions = torch.arange(len(wanted), device=keys.device)
    own = tile.first + torch.arange(len(query), device=keys.device)
    seen = wanted & (positions <= own.unsqueeze(-1))
    return (query @ keys[: len(wanted)].T).masked_fill(~seen, -torch.inf)


def _attend(query: Tensor, keys: Tensor, values: Tensor, wanted: Tensor, tile: Tile) -> Tensor:
    return _logits(query, keys, wanted, tile).softmax(-1) @ values[: len(wanted)]
