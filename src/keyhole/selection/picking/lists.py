"""Lists of blocks, as `keyhole.selection.block_lists` makes them: from them to slots and to their mass.

Legend: B batch, Hkv KV heads, G query heads of each, K blocks of a list, P blocks, C strides, S slots.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from keyhole.kernels.ranking.page_slots import width_of
from keyhole.selection.base import Step
from keyhole.selection.picking.pages import spans
from keyhole.selection.picking.rank import group_shares


def listed_slots(lists: Tensor, step: Step, block: int) -> tuple[Tensor, Tensor]:
    """The competing slots of blocks `[B, Hkv, K]`: int32 `[B, Hkv, S]`, ascending, and counts `[B, Hkv]`.

    Blocks are read whole; only a budget of less than a block cuts one.
    """
    parts = step.regions
    inside = torch.arange(block, device=lists.device)
    slots = (lists.long().unsqueeze(-1) * block + inside).flatten(2)
    slots = slots.masked_fill(lists.repeat_interleave(block, dim=-1) < 0, parts.length)
    first, stop = (bound.view(-1, 1, 1) for bound in (parts.first, parts.stop))
    # They ascend, so those that compete follow each other.
    before = (slots < first).sum(-1)
    counts = (((slots < stop).sum(-1) - before).clamp(min=0)).minimum(step.limits_on_device().view(-1, 1))
    index = torch.arange(width_of(counts, min(max(step.limits()), slots.shape[-1])), device=lists.device)
    places = (before.unsqueeze(-1) + index).clamp(max=slots.shape[-1] - 1)
    chosen = slots.gather(-1, places).masked_fill(index >= counts.unsqueeze(-1), 0)
    return chosen.int(), counts.int()


def listed_mass(lists: Tensor, logits: Tensor, stride: int, step: Step, block: int) -> Tensor:
    """The estimated share of attention on blocks `[B, Hkv, K]` and what is always read, float32 `[B, Hkv]`.

    Args:
        logits: float32 `[B, Hkv, G, C]`, those of the mean keys of strides.
    """
    parts, (_, sizes) = step.regions, spans(step.regions, block)
    blocks = sizes.shape[1]
    ends = (torch.arange(logits.shape[-1], device=lists.device) + 1) * stride
    whole = (ends <= parts.ends.unsqueeze(1)) & (ends - stride >= parts.starts.unsqueeze(1))
    inner = logits.masked_fill(~whole[:, None, None], -torch.inf)[..., : blocks * block // stride]
    missing = blocks * block // stride - inner.shape[-1]
    inner = F.pad(inner, (0, missing), value=-torch.inf).unflatten(-1, (blocks, -1))
    strides = (inner > -torch.inf).sum(-1).clamp(min=1)
    sizes = sizes[:, None, None]
    logs = inner.logsumexp(-1) - strides.log() + sizes.clamp(min=1).log()
    shares, anchored = group_shares(logs.masked_fill(sizes == 0, -torch.inf), step)
    places = lists.long().masked_fill((lists < 0) | (lists >= blocks), blocks)
    taken = torch.zeros(*lists.shape[:2], blocks + 1, device=lists.device).scatter_(-1, places, 1.0)
    return (anchored + (shares * taken[..., :blocks]).sum(-1)).clamp(0, 1)
