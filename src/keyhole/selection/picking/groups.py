"""Groups of tokens that an index cannot tell apart, wherever they lie: from their ranking to slots.

Legend: B batch, Hkv KV heads, C groups, N slots before the window, S slots read.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from keyhole.core.layout import packed_slots
from keyhole.selection.base import Selection, Step
from keyhole.selection.picking.rank import competing


class Groups(NamedTuple):
    """What competes at a step, by group.

    Attributes:
        members: int64 `[B, Hkv, N]`, the group of each slot.
        competes: bool `[B, 1, N]`.
        sizes: int64 `[B, Hkv, C]`, competing slots of each group.
    """

    members: Tensor
    competes: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, members: Tensor, count: int, step: Step) -> Groups:
        """Of `count` groups, `members` as integers of any size."""
        members = members[..., : step.regions.last].long()
        competes = competing(step.regions, members.shape[-1])
        sizes = members.new_zeros(*members.shape[:2], count)
        return cls(members, competes, sizes.scatter_add_(-1, members, competes.expand(members.shape).long()))

    def summed(self, values: Tensor) -> Tensor:
        """Sums `[B, Hkv, C]` of `values [B, Hkv, N]` of slots."""
        return values.new_zeros(self.sizes.shape).scatter_add_(-1, self.members, values)


def pick_groups(
    scores: Tensor,
    shares: Tensor,
    anchored: Tensor,
    groups: Groups,
    step: Step,
    reach: Tensor | None = None,
) -> Selection:
    """Groups of largest score until the budget is full, the last of them from its lowest slot on.

    Groups of equal score count as one, so ties go to the lower slot. Ranks groups, not tokens: what is done
    for each slot is a look-up.

    Args:
        scores: `[B, Hkv, C]`, of any scale.
        shares: float32 `[B, Hkv, C]`, the share of attention on one token of a group.
        anchored: float32 `[B, Hkv]`, that on the always-read tokens.
        reach: float32 `[B, Hkv]`, what a mass budget is to reach by these shares, where that is not the mass.
    """
    members, competes, sizes = groups
    scores = scores.masked_fill(sizes == 0, -torch.inf)
    order = scores.argsort(dim=-1, descending=True, stable=True)
    wanted = _wanted(sizes.gather(-1, order), shares.gather(-1, order), anchored, step, reach)
    filled = sizes.gather(-1, order).cumsum(-1)
    last = (filled < wanted.unsqueeze(-1)).sum(-1, keepdim=True).clamp(max=scores.shape[-1] - 1)
    least = scores.gather(-1, order.gather(-1, last))
    above, equal = scores > least, scores == least
    room = wanted - (sizes * above).sum(-1)
    edge = equal.gather(-1, members) & competes
    taken = (above.gather(-1, members) & competes) | (edge & (edge.cumsum(-1) <= room.unsqueeze(-1)))
    held = anchored + (shares.gather(-1, members) * taken).sum(-1)
    most = min(max(step.limits()), step.regions.last)
    return Selection(*packed_slots(taken, most), held.clamp(0, 1))


def _wanted(sizes: Tensor, shares: Tensor, anchored: Tensor, step: Step, reach: Tensor | None) -> Tensor:
    """Tokens to read, int64 `[B, Hkv]`, of groups in the order they are read."""
    available = sizes.sum(-1)
    limit = step.limits_on_device().view(-1, 1)
    mass, floor = step.budget.mass, step.budget.floor
    # No estimate shows that nothing is left, so all of the mass is everything.
    if mass is None or mass == 1:
        return available.minimum(limit)
    before = anchored.unsqueeze(-1) + (sizes * shares).cumsum(-1) - sizes * shares
    least = mass if reach is None else reach.unsqueeze(-1)
    needed = ((least - before) / shares.clamp(min=torch.finfo(shares.dtype).tiny)).ceil()
    needed = needed.clamp(min=0).minimum(sizes.to(needed.dtype)).long().sum(-1)
    return needed.clamp(min=floor).minimum(limit).minimum(available)
