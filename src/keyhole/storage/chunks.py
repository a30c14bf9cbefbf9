"""Chunks of neighbouring keys, and those that their mean stands for badly (ShadowKV).

Source: "ShadowKV: KV Cache in Shadows for High-Throughput Long-Context LLM Inference", arXiv 2410.21465.

Legend: B batch, Hkv KV heads, T tokens, P chunks, D head size. Chunk p begins at slot p * chunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from keyhole.core.layout import Regions
from keyhole.core.scales import scales_of

_PIECE = 8192  # tokens


def default_chunk(head_dim: int) -> int:
    """As published, 8, for heads of 128; less for smaller ones, so that landmarks take as many bytes."""
    return min(8, max(4, head_dim // 16))


def chunk_sums(keys: Tensor, counted: Tensor, begun: int, chunk: int) -> Tensor:
    """Sums float32 `[B, Hkv, P, D]` of `keys [B, Hkv, T, D]` where `counted [B, T]`.

    Args:
        begun: slots of the first chunk that lie before these keys.
    """
    keys = keys.float().masked_fill(~counted[:, None, :, None], 0.0)
    return _by_chunk(keys, begun, chunk).sum(3)


def outlier_chunks(keys: Tensor, regions: Regions, chunk: int, count: int) -> Tensor:
    """The chunks with a key least like the mean of its chunk, by their cosine, worst first.

    Only what competes is looked at. Ties go to the lower chunk.

    Args:
        keys: `[B, Hkv, N, D]`, as they are cached.

    Returns:
        int64 `[B, Hkv, count or fewer]`; -1 where a row has fewer.
    """
    likeness = [
        _worst_cosines(part, regions, start, chunk)
        for start, part in pieces(keys[:, :, : regions.last], chunk)
    ]
    worst, order = torch.cat(likeness, dim=-1).sort(dim=-1, stable=True)
    return order.masked_fill(worst == torch.inf, -1)[..., :count]


def pieces(keys: Tensor, chunk: int) -> list[tuple[int, Tensor]]:
    """Keys `[B, Hkv, N, D]` in pieces of whole chunks, to bound temporary memory; the slot each begins at."""
    size = max(1, _PIECE // chunk) * chunk
    return [(start, keys[:, :, start : start + size]) for start in range(0, max(keys.shape[2], 1), size)]


def _worst_cosines(keys: Tensor, regions: Regions, start: int, chunk: int) -> Tensor:
    """`[B, Hkv, P]`; infinity where nothing of a chunk competes."""
    slots = torch.arange(start, start + keys.shape[2], device=keys.device)
    competes = slots >= regions.first.view(-1, 1)
    keys = keys.float().masked_fill(~competes[:, None, :, None], 0.0)
    keys = keys / scales_of(keys)[..., None, None]
    sums = chunk_sums(keys, competes, 0, chunk)
    cosines = F.cosine_similarity(_by_chunk(keys, 0, chunk), sums.unsqueeze(3), dim=-1)
    counted = _by_chunk(competes[:, None, :, None], 0, chunk).squeeze(-1)
    return cosines.masked_fill(~counted, torch.inf).amin(-1)


def _by_chunk(rows: Tensor, begun: int, chunk: int) -> Tensor:
    """`[B, Hkv, T, D]` as `[B, Hkv, P, chunk, D]`, filled with zeros at both ends."""
    ends = (0, 0, begun, -(begun + rows.shape[2]) % chunk)
    return F.pad(rows, ends).unflatten(2, (-1, chunk))
