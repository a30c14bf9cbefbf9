"""The definition of `pq_select`, in plain torch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from keyhole.kernels.pq.scores import table_sums
from keyhole.kernels.pq.tables import pq_tables, softcapped
from keyhole.kernels.pq.types import Budget, Picked


def reference(
    query: Tensor,
    codebooks: Tensor,
    buffer: Tensor,
    starts: Sequence[int],
    stops: Sequence[int],
    scale: float,
    softcap: float | None,
    anchor_lse: Tensor,
    budget: Budget,
) -> Picked:
    """See `pq_select`; row r picks among slots starts[r] .. stops[r]."""
    if not (anchor_lse < torch.inf).all():
        raise ValueError("anchor_lse holds NaN or +inf")
    tables = pq_tables(query, codebooks, scale=scale)
    sums = table_sums(tables, buffer, max(stops, default=0))
    logits = softcapped(tables.base[..., None] + tables.step[..., None] * sums, softcap)
    rows, device = query.shape[0], query.device
    slots = torch.zeros(rows, budget.cap, dtype=torch.int32, device=device)
    counts = torch.zeros(rows, dtype=torch.int32, device=device)
    masses = torch.zeros(rows, dtype=torch.float32, device=device)
    for row, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        share, anchor = _shares(logits[row, :, start:stop], anchor_lse[row].double())
        chosen = _chosen(share, anchor, budget)
        slots[row, : len(chosen)] = (chosen + start).int()
        counts[row] = len(chosen)
        masses[row] = anchor + share[chosen].sum()
    return Picked(slots, counts, masses)


def _shares(logits: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Share of attention mass of each slot [n] and of the anchors, from logits [G, n] and anchors [G]."""
    lse = torch.cat([logits, anchors[:, None]], 1).logsumexp(1)
    lse = lse.masked_fill(lse == -torch.inf, 0)
    return (logits - lse[:, None]).exp().mean(0), (anchors - lse).exp().mean()


def _chosen(share: Tensor, anchor: Tensor, budget: Budget) -> Tensor:
    """Positions of the picked slots, ascending."""
    order = share.argsort(descending=True, stable=True)
    reached = anchor + share[order].cumsum(0)
    needed = int((reached < budget.mass).sum()) + int(anchor < budget.mass)
    count = min(max(needed, budget.floor), budget.cap, len(order))
    return order[:count].sort().values
