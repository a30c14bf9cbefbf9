"""From the logits of a group's query heads to the slots its KV head reads."""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.core.layout import Regions
from keyhole.kernels.ranking.page_slots import width_of
from keyhole.selection.base import Selection, Step
from keyhole.selection.picking.pages import ranked


def group_probabilities(logits: Tensor, step: Step) -> tuple[Tensor, Tensor]:
    """Softmax of each query head over what competes and what is always read, then the mean over the group.

    Softmax before the sum, so that a head with large logits does not outvote its siblings (PQCache,
    TokenSelect); the always-read tokens take part in the denominator with their exact logits.

    Args:
        logits: float32 `[B, Hkv, G, N]`, scaled; slots outside [first, stop) are ignored.

    Returns:
        `[B, Hkv, N]` shares, zero where a slot does not compete, and `[B, Hkv]`, the always-read share.
    """
    competes = competing(step.regions, logits.shape[-1]).unsqueeze(2)
    return group_shares(logits.masked_fill(~competes, -torch.inf), step)


def group_shares(logs: Tensor, step: Step) -> tuple[Tensor, Tensor]:
    """As `group_probabilities`, of whatever competes, by logarithms of unnormalised mass `[B, Hkv, G, P]`."""
    anchor = step.anchor_lse.view(logs.shape[:3])
    total = torch.logaddexp(logs.logsumexp(-1), anchor)
    return (logs - total.unsqueeze(-1)).exp().mean(2), (anchor - total).exp().mean(2)


def pick(logits: Tensor, step: Step, reach: Tensor | None = None) -> Selection:
    """The candidates of largest group probability that the budget allows; ties go to the lower slot.

    Args:
        logits: float32 `[B, Hkv, G, N]`, as for `group_probabilities`.
        reach: float32 `[B, Hkv]`, what a mass budget is to reach by these shares, where that is not the mass.
    """
    shares, anchored = group_probabilities(logits, step)
    # What does not compete sorts behind candidates whose share underflows to zero.
    outside = ~competing(step.regions, logits.shape[-1])
    most = max(1, min(max(step.limits()), step.regions.last))
    order = ranked(shares.nan_to_num().masked_fill(outside, -1.0), most)
    available = (step.regions.stop - step.regions.first).clamp(min=0).view(-1, 1).expand(anchored.shape)
    limit = step.limits_on_device().view(-1, 1)
    cumulative = shares.gather(-1, order).cumsum(-1) + anchored.unsqueeze(-1)
    if step.budget.mass is None:
        counts = available.minimum(limit)
    else:
        least = torch.full_like(anchored, step.budget.mass) if reach is None else reach
        needed = (cumulative < least.unsqueeze(-1)).sum(-1) + 1
        needed = torch.where(anchored >= least, 0, needed)
        counts = needed.clamp(min=step.budget.floor).minimum(limit).minimum(available)
    width = width_of(counts, most)
    chosen = torch.arange(width, device=logits.device) < counts.unsqueeze(-1)
    # Unchosen entries sort behind every slot, then become slot 0.
    beyond = shares.shape[-1]
    slots = order[..., :width].masked_fill(~chosen, beyond).sort(dim=-1).values
    slots = slots.masked_fill(slots == beyond, 0)
    held = (shares.gather(-1, order[..., :width]) * chosen).sum(-1) + anchored
    return Selection(slots.int(), counts.int(), held.clamp(0, 1))


def competing(regions: Regions, slots: int) -> Tensor:
    """Which of the first `slots` slots compete, bool `[B, 1, slots]`."""

    def make() -> Tensor:
        index = torch.arange(slots, device=regions.first.device)
        inside = (index >= regions.first.view(-1, 1)) & (index < regions.stop.view(-1, 1))
        return inside.unsqueeze(1)

    return regions.derived(("competing", slots), make)
