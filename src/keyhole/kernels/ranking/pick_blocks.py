"""From logits of averaged keys to the slots of blocks that InfLLM-V2 and NOSA read, in one native call.

The rules are those of `keyhole.selection.block_lists`, which is the reference.

Shapes: B batch, Hkv KV heads, G query heads of each, C strides, S slots.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from keyhole.kernels.backend.calls import BlocksCall, run
from keyhole.kernels.backend.library import current
from keyhole.kernels.backend.native import check
from keyhole.kernels.pq.types import Picked


class Listed(NamedTuple):
    """How many blocks of which size are chosen, and what competes.

    Attributes:
        block, stride: tokens of a block and of a stride.
        init, local: first and newest blocks that are always chosen.
        blocks: int64 [B], blocks of a list, those among them.
        recalled: int64 [B], those of them that are chosen before importance chooses.
        limits: int64 [B], slots at most.
        most: the greatest of them.
        length: slots there are.
        starts, ends: int64 [B] and int32 [B]: tokens of a row are the slots in [start, end).
        first, stop: int32 [B]: of these, slots in [first, stop) compete.
    """

    block: int
    stride: int
    init: int
    local: int
    blocks: Tensor
    recalled: Tensor
    limits: Tensor
    most: int
    length: int
    starts: Tensor
    ends: Tensor
    first: Tensor
    stop: Tensor


def picks_blocks_natively(logits: Tensor) -> bool:
    """Whether `pick_blocks` takes such logits."""
    return current() is not None and logits.is_cpu and logits.dtype == torch.float32


def pick_blocks(logits: Tensor, matter: Tensor | None, anchor_lse: Tensor, listed: Listed) -> Picked:
    """Slots int32 [B, Hkv, S], ascending, zero after counts int32 [B, Hkv]; their mass float32 [B, Hkv].

    Args:
        logits: float32 [B, Hkv, G, C], those of the mean keys of strides.
        matter: float32 [B, Hkv, C], mean importance of strides; None where the query chooses all blocks.
        anchor_lse: float32 [B, H], log-sum-exp of what is always read.
    """
    batch, kv_heads, heads, strides = logits.shape
    logits, anchor_lse = logits.contiguous(), anchor_lse.float().contiguous()
    matter = None if matter is None else matter.flatten(0, 1)
    if matter is not None and matter.stride(-1) != 1:
        matter = matter.contiguous()
    width = max(1, min(listed.most, listed.length))
    slots = torch.empty(batch, kv_heads, width, dtype=torch.int32)
    counts, held = torch.empty(batch, kv_heads, dtype=torch.int32), torch.empty(batch, kv_heads)
    bounds = [bound.contiguous() for bound in (listed.starts, listed.ends, listed.first, listed.stop)]
    rows = (listed.limits, listed.blocks, listed.recalled)
    call = BlocksCall(
        logits.data_ptr(),
        None if matter is None else matter.data_ptr(), 0 if matter is None else matter.stride(0),
        anchor_lse.data_ptr(), batch, kv_heads, heads, strides,
        listed.stride, listed.block, listed.length,
        *(bound.data_ptr() for bound in bounds), *(row.data_ptr() for row in rows),
        listed.init, listed.local, width, slots.data_ptr(), counts.data_ptr(), held.data_ptr(),
    )  # fmt: skip
    check(run("kh_pick_blocks", call))
    return Picked(slots[..., : max(1, int(counts.max()))], counts, held)
