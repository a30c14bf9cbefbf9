"""Estimated logits of all indexed tokens, by look-ups of packed tables."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from keyhole.kernels.backend.triton import capped
from keyhole.kernels.pq.triton.scan import SLOTS, head_sums, slot_of_lane, tile_lanes, tiles_of
from keyhole.kernels.pq.triton.tables import heads_of_word, packed_tables
from keyhole.kernels.pq.types import BLOCK


def pq_scores(
    query: Tensor, codebooks: Tensor, buffer: Tensor, n: int, scale: float, softcap: float | None
) -> Tensor:
    """Logits [R, G, n] (float32); see `keyhole.kernels.pq.scores`."""
    rows, heads, _ = query.shape
    centroids = codebooks.shape[2]
    out = torch.empty(rows, heads, n, dtype=torch.float32, device=query.device)
    if n == 0:
        return out
    tables = packed_tables(query, codebooks, scale)
    # Programs that read the same codes are neighbours.
    _scores[(tables.words.shape[1], tiles_of(n), rows)](
        *tables, buffer, out, buffer.stride(0), buffer.stride(1), buffer.shape[1], buffer.shape[2] // BLOCK,
        tables.words.shape[2], n, heads, softcap,
        HEADS=heads_of_word(centroids), CENTROIDS=centroids, SLOTS=SLOTS,
    )  # fmt: skip
    return out


@triton.jit
def _scores(
    words, base, step, codes, out, row_stride, block_stride, blocks, code_rows: tl.constexpr, stored, n,
    heads, softcap, HEADS: tl.constexpr, CENTROIDS: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    word, tile, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    place = row * tl.num_programs(0) + word
    sums = head_sums(
        words + place * stored * CENTROIDS, codes + row * row_stride, tile, blocks, block_stride,
        code_rows, CENTROIDS, SLOTS,
    )  # fmt: skip
    head = tl.arange(0, HEADS)
    factors = place * HEADS + head
    logits = capped(tl.load(base + factors) + tl.load(step + factors) * sums.to(tl.float32), softcap)
    slot = slot_of_lane(tile_lanes(tile, SLOTS), CENTROIDS == 16)[:, None]
    head = (word * HEADS + head)[None, :]
    tl.store(out + (row * heads + head) * n + slot, logits, mask=(head < heads) & (slot < n))
