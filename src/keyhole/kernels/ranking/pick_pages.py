"""From the scores of pages to the slots that a budget allows, in one native call.

Shapes: B batch, Hkv KV heads, L lists of pages, Hkv or 1 for all heads, P pages, S slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.kernels.backend.calls import PickingCall, run
from keyhole.kernels.backend.library import current
from keyhole.kernels.backend.native import check
from keyhole.kernels.pq.types import Picked
from keyhole.kernels.ranking.types import Allowed, Paged


def picks_natively(scores: Tensor, shares: Tensor) -> bool:
    """Whether `pick_pages` takes such scores and shares."""
    return current() is not None and scores.is_cpu and scores.dtype == shares.dtype == torch.float32


def pick_pages(
    scores: Tensor, shares: Tensor, anchored: Tensor, paged: Paged, allowed: Allowed, count: int
) -> Picked:
    """As `page_slots` of the `count` pages that `top_slots` finds, of which those before `first` come last.

    The operands are those of `page_slots`; NaN counts as the least score. Slots are int32 `[B, L, S]`, counts
    `[B, L]`, mass float32 `[B, Hkv]`.
    """
    (batch, lists, pages), kv_heads = scores.shape, shares.shape[1]
    by_mass = allowed.mass is not None
    width = max(1, min(allowed.most, paged.last))
    slots = torch.empty(batch, lists, width, dtype=torch.int32)
    counts, held = torch.empty(batch, lists, dtype=torch.int32), torch.empty(batch, kv_heads)
    scores, shares, anchored = scores.contiguous(), shares.contiguous(), anchored.contiguous()
    first, stop, limits = paged.first.int(), paged.stop.int(), allowed.limits.long()
    call = PickingCall(
        scores.data_ptr(), shares.data_ptr(), anchored.data_ptr(),
        batch, lists, kv_heads, pages, paged.page,
        first.data_ptr(), stop.data_ptr(), limits.data_ptr(),
        allowed.mass if allowed.mass is not None else -1.0, allowed.floor, count, width,
        slots.data_ptr(), counts.data_ptr(), held.data_ptr(),
    )  # fmt: skip
    check(run("kh_pick_pages", call))
    # A mass may take little of what it may.
    used = max(1, int(counts.max())) if by_mass else width
    return Picked(slots[..., :used], counts, held)
