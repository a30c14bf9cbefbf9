"""Scores and shares of pages by the boxes of their keys, in one native call.

Shapes: B batch, Hkv KV heads, R = B * Hkv rows, G query heads of a KV head, P pages, D head size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from keyhole.kernels.backend.calls import BoxesCall, run
from keyhole.kernels.backend.library import current
from keyhole.kernels.backend.native import ASKED, FLOATS, OUT_OF_RANGE, TYPES, check
from keyhole.kernels.ranking.types import Paged


class Boxed(NamedTuple):
    scores: Tensor  # float32 [B, Hkv, P]: log of the sum over heads of the softmax of their bounds
    shares: Tensor  # float32 [B, Hkv, P], of attention on what competes of a page, by estimate
    anchored: Tensor  # float32 [B, Hkv], of attention on what is always read


class Ends(NamedTuple):
    """The greatest and the least key of each page, `[B, Hkv, P, 2 * D]`."""

    ends: Tensor


class CodedEnds(NamedTuple):
    """The same as codes of 4 bits of what each number may be.

    Attributes:
        levels: float32 `[R, 2 * D, 16, 1]`, of channels' greatest and least keys in turn.
        codes: as `allocate_codes` makes them, of R rows.
        largest: a query with greater numbers is not answered.
    """

    levels: Tensor
    codes: Tensor
    largest: float


def boxes_are_native(query: Tensor, boxes: Ends | CodedEnds) -> bool:
    """Whether `box_scores` takes such queries and boxes."""
    held = boxes.ends if isinstance(boxes, Ends) else boxes.codes
    ready = current() is not None and query.is_cpu and held.is_cpu and held.stride(-1) == 1
    return ready and query.dtype in ASKED and held.dtype in (*FLOATS, torch.uint8)


def box_scores(
    query: Tensor,
    boxes: Ends | CodedEnds,
    paged: Paged,
    anchor_lse: Tensor,
    *,
    kv_heads: int,
    pages: int,
    spread: float,
    scale: float,
    softcap: float | None = None,
) -> Boxed | None:
    """How pages rank for `query [B, H, D]`; None where its numbers are too large for codes.

    Both bounds of a page's logits follow from its box. Its mass is estimated by the logit in their middle,
    and by `spread` of their distance above that.

    Args:
        anchor_lse: float32 `[B, H]`, log-sum-exp of what is always read.
        pages: the first so many are looked at.
    """
    (batch, heads, size), first, stop = query.shape, paged.first.int(), paged.stop.int()
    query, anchor_lse = query.contiguous(), anchor_lse.contiguous()
    scores, shares = torch.empty(batch, kv_heads, pages), torch.empty(batch, kv_heads, pages)
    anchored = torch.empty(batch, kv_heads)
    ends = boxes.ends if isinstance(boxes, Ends) else None
    call = BoxesCall(
        query.data_ptr(), None if ends is None else ends.data_ptr(), TYPES[query.dtype],
        0 if ends is None else TYPES[ends.dtype], *((0, 0) if ends is None else ends.stride()[1:3]),
        batch * kv_heads, kv_heads, heads // kv_heads, size, pages, paged.page,
        first.data_ptr(), stop.data_ptr(), anchor_lse.data_ptr(), scale, softcap or 0.0, spread,
        scores.data_ptr(), shares.data_ptr(), anchored.data_ptr(),
    )  # fmt: skip
    if isinstance(boxes, CodedEnds):
        levels, codes, call.largest = boxes
        call.index.place(levels, codes)
    status = run("kh_box_scores", call)
    if status == OUT_OF_RANGE:
        return None
    check(status)
    return Boxed(scores, shares, anchored)
