"""Block-sparse attention of a prompt on a GPU, a piece of it at a time.

Keys are rounded once for each KV head. For a piece of the tiles, each query's limit comes from what is always
read; bytes are multiplied on tensor cores to find what may exceed it; lists of that are made, and attention
reads them. Estimates are by `sale_tiles.ROUNDING`: what is kept differs from a CPU's where rounding decides.
"""

import torch
import triton
from torch import Tensor

from keyhole.kernels.gpu.common import rows_first
from keyhole.kernels.gpu.sale_attend import attend
from keyhole.kernels.gpu.sale_estimate import UNITS, estimate
from keyhole.kernels.gpu.sale_keys import small_keys
from keyhole.kernels.gpu.sale_limits import limits
from keyhole.kernels.gpu.sale_lists import lists
from keyhole.kernels.gpu.sale_tiles import GRAIN, Prompt
from keyhole.kernels.sale_tiles import BLOCK, ROWS, Reach, SparseAttended

_LISTS = 512 << 20  # bytes that the lists of a piece may have


def sale_attention(
    query: Tensor, keys: Tensor, values: Tensor, tau: Tensor, scale: float, reach: Reach,
    padding: tuple[int, ...], with_map: bool,
) -> SparseAttended:  # fmt: skip
    """As `keyhole.kernels.sale_attention`, of operands of one dtype whose shapes were checked.

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
    kept = torch.empty(batch, heads, tiles, dtype=torch.int32, device=query.device)
    words = kept.new_empty(batch, heads, tiles if with_map else 0, triton.cdiv(tokens, BLOCK))
    small = small_keys(prompt.keys, padding, prompt.unused)
    most = max(1, _LISTS // (batch * heads * triton.cdiv(tokens, GRAIN.value) * 4))
    for tile in range(0, tiles, most):
        piece = slice(tile, min(tile + most, tiles))
        count = piece.stop - tile
        part = words[:, :, piece] if with_map else words.new_empty(batch, heads, count, words.shape[3])
        estimate(prompt, small, limits(prompt, small, tile, count, UNITS), part, tile)
        attend(prompt, part, *lists(prompt, part, kept[:, :, piece], tile), tile, out)
    return SparseAttended(out, kept, words if with_map else None)


def _filled(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    """These numbers as int32, without a copy from the host that it would wait for."""
    filled = torch.zeros(len(numbers), dtype=torch.int32, device=device)
    for place, number in enumerate(numbers):
        if number:
            filled[place].fill_(number)
    return filled
