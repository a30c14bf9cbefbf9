"""From the pages that rank highest to the slots that a budget allows.

Page u is the slots [u * page, (u + 1) * page), of which those in [first, stop) compete.

Shapes: B batch, Hkv KV heads, L lists of pages, Hkv or 1 for all heads, P pages, K of them that may be read.
"""

import torch
from torch import Tensor

from keyhole.kernels.backend.dispatch import at_hand, use_triton
from keyhole.kernels.pq.types import Picked
from keyhole.kernels.ranking.types import Allowed, Paged

_MOST_COMPARED = 4096  # pages; beyond, sorting them is faster than comparing each with each


def page_slots(
    places: Tensor,
    scores: Tensor,
    shares: Tensor,
    anchored: Tensor,
    paged: Paged,
    allowed: Allowed,
    *,
    impl: str = "auto",
) -> Picked:
    """Slots int32 [B, L, S], ascending, of pages read whole in the order of their scores, but for the last.

    That one is read from its start as far as is allowed. Counts are [B, L]. The mass is float32 [B, Hkv],
    `anchored` and the shares of what is read. With one list, a mass is reached for every head.

    Args:
        places: int64 [B, L, K], ascending: the pages of greatest score, as many as may be read.
        scores: float32 [B, L, P], without NaN; of equal ones the lower page is first.
        shares: float32 [B, Hkv, P], of attention on what competes of a page.
        anchored: float32 [B, Hkv], of attention on what is always read.
    """
    fits = places.shape[:2] == scores.shape[:2] and shares.shape[:2] == anchored.shape
    if not fits or scores.shape[1] not in (1, shares.shape[1]) or scores.shape[2] != shares.shape[2]:
        raise ValueError(
            f"places {list(places.shape)}, scores {list(scores.shape)}, shares {list(shares.shape)} and "
            f"anchored {list(anchored.shape)} do not fit; give one list of pages, or one for each KV head"
        )
    operands = (places, scores, shares, anchored, paged, allowed)
    if use_triton(impl, scores, supported=0 < places.shape[-1] <= _MOST_COMPARED):
        from keyhole.kernels.ranking.triton.page_slots import page_slots as on_gpu

        return on_gpu(*operands)
    return _reference(*operands)


def in_order(places: Tensor, scores: Tensor) -> Tensor:
    """Ascending places [..., K] by their `scores [..., P]`: greatest first, of equal ones the lower first."""
    return places.gather(-1, scores.gather(-1, places).argsort(dim=-1, descending=True, stable=True))


def width_of(counts: Tensor, most: int | None = None) -> int:
    """Columns for rows of so many: as the longest needs, or, rather than wait for a device, for `most`."""
    return max(1, int(counts.max()) if most is None or at_hand(counts) else most)


def scattered(values: Tensor, places: Tensor, width: int) -> Tensor:
    """`values [..., n]` at int64 `places [..., n]` of int32 `[..., width]`, zero elsewhere.

    Those whose place is `width` are left out.
    """
    found = values.new_zeros(*values.shape[:-1], width + 1, dtype=torch.int32)
    return found.scatter_(-1, places, values.int())[..., :width]


def _reference(
    places: Tensor, scores: Tensor, shares: Tensor, anchored: Tensor, paged: Paged, allowed: Allowed
) -> Picked:
    order = in_order(places, scores)
    begins, sizes = _competing(order, paged)
    shares = shares.gather(-1, order.expand(-1, shares.shape[1], -1))
    limits = allowed.limits.view(-1, 1).expand(scores.shape[:2])
    if allowed.mass is not None:
        wanted = _reaching(allowed.mass, shares, anchored, sizes).clamp(min=allowed.floor)
        limits = wanted.unflatten(1, (scores.shape[1], -1)).amax(-1).minimum(limits)
    taken = (limits.unsqueeze(-1) - sizes.cumsum(-1) + sizes).clamp(min=0).minimum(sizes)
    held = anchored + (shares * taken / sizes.clamp(min=1)).sum(-1)
    ascending = order.argsort(dim=-1)
    most = min(allowed.most, paged.last)
    slots, counts = _filled(begins.gather(-1, ascending), taken.gather(-1, ascending), paged.page, most)
    return Picked(slots, counts, held)


def _competing(pages: Tensor, paged: Paged) -> tuple[Tensor, Tensor]:
    """Where the competing slots of `pages [B, L, K]` begin, and how many they are."""
    begins = (pages * paged.page).maximum(paged.first.view(-1, 1, 1))
    ends = ((pages + 1) * paged.page).minimum(paged.stop.view(-1, 1, 1))
    return begins, (ends - begins).clamp(min=0)


def _reaching(mass: float, shares: Tensor, anchored: Tensor, sizes: Tensor) -> Tensor:
    """Tokens [B, Hkv] of as many ranked pages, `shares [B, Hkv, K]` and `sizes [B, L, K]`, as reach it."""
    before = anchored.unsqueeze(-1) + shares.cumsum(-1) - shares
    return (sizes * (before < mass)).sum(-1)


def _filled(begins: Tensor, taken: Tensor, page: int, most: int) -> tuple[Tensor, Tensor]:
    """The first `taken [B, L, K]` slots from each of `begins`, packed to int32 [B, L, S]; their counts.

    There are no more than `most` in a list.
    """
    offsets = torch.arange(page, device=begins.device)
    counts = taken.sum(-1)
    width = width_of(counts, most)
    starts = (taken.cumsum(-1) - taken).unsqueeze(-1)
    places = torch.where(offsets < taken.unsqueeze(-1), starts + offsets, width)
    slots = (begins.unsqueeze(-1) + offsets).flatten(-2)
    return scattered(slots, places.flatten(-2), width), counts.int()
