"""The definition of attention over selected slots, in plain torch.

Shapes: R rows (batch x KV heads), G query heads of a KV head, D head size, S selected, cap slots of a row.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from keyhole.kernels.pq.tables import softcapped


class Attended(NamedTuple):
    out: Tensor  # [R, G, D], dtype of the query
    lse: Tensor  # float32 [R, G]: log-sum-exp of the logits read, sink logits included; -inf if none
    logits: Tensor | None = None  # float32 [R, G, S], -inf in unused entries; where asked for


def valid_slots(slots: Tensor, counts: Tensor, capacity: int) -> tuple[Tensor, Tensor]:
    """slots [R, S] with 0 in place of unused entries, and where they are used [R, S].

    Raises ValueError if a count or a used slot is out of range.
    """
    width = slots.shape[1]
    if not ((counts >= 0) & (counts <= width)).all():
        raise ValueError(f"a count is outside 0..{width}, the width of slots")
    valid = torch.arange(width, device=slots.device) < counts[:, None]
    index = slots.long().masked_fill(~valid, 0)
    if valid.any() and not ((index >= 0) & (index < capacity)).all():
        raise ValueError(f"a slot is outside the cache, 0..{capacity - 1}")
    return index, valid


def picked_rows(source: Tensor, rows: Tensor, index: Tensor, scales: Tensor | None) -> Tensor:
    """float32 rows [R, S, D] of source [R, cap, D] at [rows [R, 1], index [R, S]], times their scales."""
    if source.shape[1] == 0:
        return source.new_zeros(*index.shape, source.shape[2], dtype=torch.float32)
    picked = source[rows, index].float()
    return picked if scales is None else picked * scales[rows, index][..., None].float()


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    valid: Tensor,
    scale: float,
    softcap: float | None,
    sink_logits: Tensor | None,
    *,
    with_logits: bool = False,
) -> Attended:
    """Attention of query [R, G, D] over float32 keys and values [R, S, D] where valid [R, S]."""
    logits = softcapped(query.float() @ keys.transpose(1, 2) * scale, softcap)
    logits = logits.masked_fill(~valid[:, None], -torch.inf)
    shown = logits if with_logits else None
    if sink_logits is not None:
        logits = torch.cat([logits, sink_logits.float()[..., None]], -1)
    lse = logits.logsumexp(-1)
    weights = (logits - lse[..., None]).exp().masked_fill(logits == -torch.inf, 0)
    out = weights[..., : keys.shape[1]] @ values.masked_fill(~valid[..., None], 0)
    return Attended(out.to(query.dtype), lse, shown)


def page_sums(values: Tensor, page: int) -> Tensor:
    """Sums over the pages of `values [..., N]`."""
    padded = F.pad(values, (0, -values.shape[-1] % page))
    return padded.unflatten(-1, (padded.shape[-1] // page, page)).sum(-1)
