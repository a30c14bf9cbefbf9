"""Block-sparse attention of a prompt on a GPU, a piece of it at a time.

Keys are rounded once for each KV head. For a piece of the tiles, each query's limit comes from what is always
read; bytes are multiplied on tensor cores to find what may exceed it; lists of that are made, and attention
reads them. Estimates are by `sale_tiles.ROUNDING`: what is kept differs from a CPU's where rounding decides.
"""

import torch
import triton
from torch import Tensor

from keyhole.kernels.backend.triton import rows_first
from keyhole.kernels.sale.tiles import BLOCK, ROWS, Reach, SparseAttended
from keyhole.kernels.sale.triton.attend import attend
from keyhole.kernels.sale.triton.estimate import UNITS, estimate
from keyhole.kernels.sale.triton.keys import block_means, small_keys
from keyhole.kernels.sale.triton.limits import limits
from keyhole.kernels.sale.triton.lists import Lists, lists
from keyhole.kernels.sale.triton.tiles import Prompt

_LISTS = 512 << 20  # bytes that the lists of a piece may have


def sale_attention(
    query: Tensor, keys: Tensor, values: Tensor, tau: Tensor, scale: float, reach: Reach,
    padding: tuple[int, ...], with_map: bool,
) -> SparseAttended:  # fmt: skip
    """As `keyhole.kernels.sale.attention`, of operands of one dtype whose shapes were checked.

    A tau that is negative or NaN reads what is always read.
    """
    batch, heads, queries, _ = query.shape
    tokens, tiles = keys.shape[2], triton.cdiv(queries, ROWS)
    prompt = Prompt(
        rows_first(query), rows_first(keys), rows_first(values), tau.contiguous(), scale, reach,
        _filled(padding, query.device),
    )  # fmt: skip
    out = query.new_empty(batch, heads, queries, values.shape[3])
    for row, slots in enumerate(padding):
        out[row, :, : max(slots - (tokens - queries), 0)].zero_()
    groups, blocks = triton.cdiv(queries, reach.rows), triton.cdiv(tokens, BLOCK)
    kept = torch.empty(batch, heads, tiles * prompt.parts, dtype=torch.int32, device=query.device)
    words = kept.new_empty(batch, heads, kept.shape[2] if with_map else 0, blocks)
    small = small_keys(prompt.keys, padding, prompt.unused)
    means = [block_means(side, padding) if reach.means else None for side in (prompt.keys, prompt.values)]
    most = max(1, _LISTS // (batch * heads * Lists.bytes_of(blocks)))
    for tile in range(0, tiles, most):
        count = min(most, tiles - tile)
        piece = slice(tile * prompt.parts, (tile + count) * prompt.parts)
        counts = kept[:, :, piece]
        part = words[:, :, piece] if with_map else words.new_empty(*counts.shape, blocks)
        estimate(prompt, small, limits(prompt, small, tile, count, UNITS), part, tile)
        attend(prompt, lists(prompt, part, counts, tile), means, tile, out)
    return SparseAttended(out, kept[:, :, :groups], words[:, :, :groups] if with_map else None)


def _filled(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """These numbers as int32, without a copy from the host that it would wait for."""
    filled = torch.zeros(len(numbers), dtype=torch.int32, device=device)
    for place, number in enumerate(numbers):
        if number:
            filled[place].fill_(number)
    return filled
