"""Pages: runs of neighbouring slots that are scored and read together.

Page u is the slots [u * page, (u + 1) * page), of which only those in [first, last) compete. A page of one
slot is a token.

Legend: B batch, Hkv KV heads, L lists of pages, one for each KV head or one for all, P pages, K ranked pages,
S slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole import kernels
from keyhole.regions import Regions, scattered, width_of
from keyhole.selection.base import Selection, Step

_BROKEN = 3  # pages that a budget may only touch: at sinks, at the window, and where it ends


def page_count(regions: Regions, page: int) -> int:
    """Pages that begin before the window."""
    return -(-regions.last // page)


def spans(regions: Regions, page: int) -> tuple[Tensor, Tensor]:
    """Where the competing slots of each page begin and how many they are, int64 `[B, P]` both."""
    edges = torch.arange(0, regions.last, page, device=regions.first.device)
    begins = edges.maximum(regions.first.unsqueeze(1))
    ends = (edges + page).clamp(max=regions.last)
    return begins, (ends - begins).clamp(min=0)


def pick_pages(scores: Tensor, shares: Tensor, anchored: Tensor, step: Step, page: int) -> Selection:
    """The pages of largest score that the budget allows, the last from its start as far as it allows.

    A mass budget reads pages in that order until their shares reach it, for every head where all have one
    list; of `mass=1` all are read, since no estimate shows that nothing is left. Ties go to the lower page,
    and what does not compete is never read.

    Args:
        scores: float32 `[B, L, P]`, of any scale; L is 1 or Hkv.
        shares: float32 `[B, Hkv, P]`, the share of attention on a page's competing slots.
        anchored: float32 `[B, Hkv]`, that of the always-read tokens.
    """
    begins, sizes = (part.unsqueeze(1).expand(scores.shape) for part in spans(step.regions, page))
    limits = step.limits_on_device().view(-1, 1).expand(scores.shape[:2])
    most = min(max(step.limits()), step.regions.last)
    pages = min(scores.shape[-1], most // page + _BROKEN)
    order = ranked(scores.masked_fill(sizes == 0, -torch.inf), pages)
    sizes, shares = sizes.gather(-1, order), shares.gather(-1, order.expand(-1, shares.shape[1], -1))
    mass = step.budget.mass
    if mass is not None and mass < 1:
        wanted = _reaching(mass, shares, anchored, sizes).clamp(min=step.budget.floor)
        wanted = wanted.unflatten(1, (scores.shape[1], -1)).amax(-1)
        limits = wanted.minimum(limits)
    taken = (limits.unsqueeze(-1) - sizes.cumsum(-1) + sizes).clamp(min=0).minimum(sizes)
    held = anchored + (shares * taken / sizes.clamp(min=1)).sum(-1)
    order, places = order.sort(dim=-1)
    slots, counts = _slots(begins.gather(-1, order), taken.gather(-1, places), page, most)
    return Selection(slots.expand(-1, shares.shape[1], -1), counts.expand(held.shape), held)


def ranked(scores: Tensor, most: int) -> Tensor:
    """Places of the `most` greatest of `scores [..., P]`, greatest first, of equal ones the lower first.

    NaN ranks last. Only what may be among the greatest is sorted.
    """
    scores = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    places = kernels.top_slots(scores, most)
    return places.gather(-1, scores.gather(-1, places).argsort(dim=-1, descending=True, stable=True))


def _reaching(mass: float, shares: Tensor, anchored: Tensor, sizes: Tensor) -> Tensor:
    """Tokens `[B, Hkv]` of as many ranked pages, `shares [B, Hkv, K]` and `sizes [B, L, K]`, as reach it."""
    before = anchored.unsqueeze(-1) + shares.cumsum(-1) - shares
    return (sizes * (before < mass)).sum(-1)


def _slots(begins: Tensor, taken: Tensor, page: int, most: int) -> tuple[Tensor, Tensor]:
    """The first `taken [B, L, K]` slots from each of `begins`, packed to int32 `[B, L, S]`; their counts.

    There are no more than `most` in a list.
    """
    offsets = torch.arange(page, device=begins.device)
    counts = taken.sum(-1)
    width = width_of(counts, most)
    starts = (taken.cumsum(-1) - taken).unsqueeze(-1)
    places = torch.where(offsets < taken.unsqueeze(-1), starts + offsets, width)
    slots = (begins.unsqueeze(-1) + offsets).flatten(-2)
    return scattered(slots, places.flatten(-2), width), counts.int()
