"""Pages: runs of neighbouring slots that are scored and read together.

Page u is the slots [u * page, (u + 1) * page), of which only those in [first, stop) compete. A page of one
slot is a token.

Legend: B batch, Hkv KV heads, L lists of pages, one for each KV head or one for all, P pages, K ranked pages,
S slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole import kernels
from keyhole.core.layout import Regions
from keyhole.kernels.ranking.page_slots import in_order
from keyhole.kernels.ranking.pick_pages import pick_pages as kernel_pick
from keyhole.kernels.ranking.pick_pages import picks_natively
from keyhole.selection.base import Selection, Step

_BROKEN = 3  # pages that a budget may only touch: at sinks, at the window, and where it ends


def page_count(regions: Regions, page: int) -> int:
    """Pages that begin before the window, at the latest that it begins."""
    return -(-regions.last // page)


def spans(regions: Regions, page: int) -> tuple[Tensor, Tensor]:
    """Where the competing slots of each page begin and how many they are, int64 `[B, P]` both."""
    return regions.derived(("spans", page), lambda: _spans(regions, page))


def _spans(regions: Regions, page: int) -> tuple[Tensor, Tensor]:
    edges = torch.arange(0, regions.last, page, device=regions.first.device)
    begins = edges.maximum(regions.first.unsqueeze(1))
    ends = (edges + page).minimum(regions.stop.unsqueeze(1))
    return begins, (ends - begins).clamp(min=0)


def pick_pages(
    scores: Tensor,
    shares: Tensor,
    anchored: Tensor,
    step: Step,
    page: int,
    reach: Tensor | None = None,
) -> Selection:
    """The pages of largest score that the budget allows, the last from its start as far as it allows.

    A mass budget reads pages in that order until their shares reach it, for every head where all have one
    list; of `mass=1` all are read, since no estimate shows that nothing is left. Ties go to the lower page,
    and what does not compete is never read.

    Args:
        scores: float32 `[B, L, P]`, of any scale; L is 1 or Hkv.
        shares: float32 `[B, Hkv, P]`, the share of attention on a page's competing slots.
        anchored: float32 `[B, Hkv]`, that of the always-read tokens.
        reach: float32 `[B, Hkv]`, what a mass budget is to reach by these shares, where that is not the mass.
    """
    most = max(step.limits())
    count = min(scores.shape[-1], min(most, step.regions.last) // page + _BROKEN)
    mass = step.budget.mass if step.budget.mass != 1 else None
    # One share to reach for all heads, each of which begins as far from it as from its own.
    ahead = 0.0 if reach is None or mass is None else mass - reach
    paged = kernels.Paged(step.regions.first, step.regions.stop, step.regions.last, page)
    allowed = kernels.Allowed(step.limits_on_device(), most, mass, step.budget.floor)
    if picks_natively(scores, shares):
        picked = kernel_pick(scores, shares, anchored + ahead, paged, allowed, count)
    else:
        earlier = _earlier(step.regions, page, scores.shape[-1])
        scores = _comparable(scores.masked_fill(earlier, -torch.inf))
        places = kernels.top_slots(scores, count)
        picked = kernels.page_slots(places, scores, shares, anchored + ahead, paged, allowed)
    slots, counts, held = picked
    return Selection(
        slots.expand(-1, shares.shape[1], -1), counts.expand(held.shape), (held - ahead).clamp(0, 1)
    )


def _earlier(regions: Regions, page: int, pages: int) -> Tensor:
    """Pages before the first that competes, bool `[B, 1, pages]`: nothing of them competes."""

    def make() -> Tensor:
        index = torch.arange(pages, device=regions.first.device)
        return index < (regions.first // page).view(-1, 1, 1)

    return regions.derived(("earlier", page, pages), make)


def ranked(scores: Tensor, most: int) -> Tensor:
    """Places of the `most` greatest of `scores [..., P]`, greatest first, of equal ones the lower first.

    NaN ranks last. Only what may be among the greatest is sorted.
    """
    scores = _comparable(scores)
    return in_order(kernels.top_slots(scores, most), scores)


def _comparable(scores: Tensor) -> Tensor:
    """NaN ranks last."""
    return scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
