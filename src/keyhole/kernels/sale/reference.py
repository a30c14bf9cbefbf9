"""The definition of block-sparse attention of a prompt, in plain torch, a tile at a time.

Shapes: R queries of a tile, in T groups that read the same keys, N tokens of a batch row without its padding,
D and Dv sizes of keys and values, C candidates among the keys, M means of keys that are left out.
"""

import torch
from torch import Tensor

from keyhole.kernels.sale.tiles import (
    BLOCK,
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
    """As `keyhole.kernels.sale.attention`, of operands that were checked, by estimates of any `rounding`."""
    batch, heads, queries, _ = query.shape
    tokens, groups = keys.shape[2], heads // keys.shape[1]
    out = query.new_zeros(*query.shape[:3], values.shape[3])
    counts = (batch, heads, -(-queries // reach.rows))
    kept = torch.zeros(counts, dtype=torch.int32, device=query.device)
    words = kept.new_zeros(*counts, -(-tokens // BLOCK)) if with_map else None
    for row, unused in enumerate(padding):
        where = tiles(queries, tokens, unused, reach)
        for head in range(heads):
            sides = keys[row, head // groups, unused:].float(), values[row, head // groups, unused:].float()
            small = small_keys(sides[0], rounding)
            first = 0
            for tile in where:
                rows = slice(*tile.rows)
                asked = query[row, head, rows].float() * scale
                some = small_queries(asked, rounding)
                wanted = select(asked, some, sides[0], small, float(tau[head]), tile, reach)
                out[row, head, rows] = _attend(asked, *sides, wanted, tile, reach).to(out)
                places = slice(first, first + len(wanted))
                kept[row, head, places] = wanted.sum(-1).int()
                if words is not None:
                    packed = pack(wanted)
                    words[row, head, places, : packed.shape[-1]] = packed
                first = places.stop
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
    """Which keys a tile of scaled queries [R, D] reads, of those up to its last query: bool [T, N].

    `some` and `small` are rounded queries and keys.
    """
    groups = -(-len(query) // reach.rows)
    wanted = torch.ones(groups, tile.first + len(query), dtype=torch.bool, device=keys.device)
    if tau == 0 or tile.begin == tile.end:
        return wanted
    candidates = slice(tile.begin, tile.end)
    wanted[:, candidates] = False
    lse = _logits(query, keys, wanted[:1], tile).logsumexp(-1)
    if reach.pooled:
        # The exponential of a mean is no more than the mean of exponentials.
        means = keys[candidates].unflatten(0, (-1, BLOCK)).mean(1)
        least = (query @ means.T).logsumexp(-1) + torch.log(torch.tensor(float(BLOCK)))
        lse = torch.logaddexp(lse, least)
    estimates = some @ small[candidates].T + (query @ keys.mean(0)).unsqueeze(-1)
    passing = estimates > (lse + torch.log(torch.tensor(tau))).unsqueeze(-1)
    passing = torch.stack([part.any(0) for part in passing.split(reach.rows)])
    runs = passing.unflatten(-1, (-1, reach.width)).any(-1)
    wanted[:, candidates] = runs.repeat_interleave(reach.width, -1)
    return wanted


def _logits(query: Tensor, keys: Tensor, wanted: Tensor, tile: Tile) -> Tensor:
    """Exact logits [R, N] of a tile, -inf where a key comes later or is not wanted: bool [R or 1, N]."""
    positions = torch.arange(wanted.shape[-1], device=keys.device)
    own = tile.first + torch.arange(len(query), device=keys.device)
    seen = wanted & (positions <= own.unsqueeze(-1))
    return (query @ keys[: wanted.shape[-1]].T).masked_fill(~seen, -torch.inf)


def _attend(query: Tensor, keys: Tensor, values: Tensor, wanted: Tensor, tile: Tile, reach: Reach) -> Tensor:
    logits = _logits(query, keys, wanted.repeat_interleave(reach.rows, 0)[: len(query)], tile)
    values_read = values[: wanted.shape[-1]]
    if not reach.means:
        return logits.softmax(-1) @ values_read
    out = []
    for part, own, reads in zip(query.split(reach.rows), logits.split(reach.rows), wanted, strict=True):
        mean_keys, mean_values, counts = left_out(keys, values, reads, tile)
        weights = torch.cat((own, part @ mean_keys.T + counts.log()), -1).softmax(-1)
        out.append(weights @ torch.cat((values_read, mean_values)))
    return torch.cat(out)


def left_out(keys: Tensor, values: Tensor, reads: Tensor, tile: Tile) -> tuple[Tensor, Tensor, Tensor]:
    """Means of what a group does not read of each block: keys [M, D], values [M, Dv], and of how many: [M].

    Args:
        reads: bool `[N]`, the keys it reads.
    """
    missing = ~reads[tile.begin : tile.end].unflatten(0, (-1, BLOCK))
    where = missing.any(-1)
    missing = missing[where]
    counts = missing.sum(-1)

    def mean(rows: Tensor) -> Tensor:
        blocks = rows[tile.begin : tile.end].unflatten(0, (-1, BLOCK))[where]
        return blocks.masked_fill(~missing.unsqueeze(-1), 0.0).sum(1) / counts.unsqueeze(-1)

    return mean(keys), mean(values), counts
