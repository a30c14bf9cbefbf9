"""Attention over tokens that lie in several places, each in a form of its own.

Legend: B batch, H query heads, Hkv KV heads, S slots, n rows, W width of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from keyhole.attention import Logits, Part, attend_slots, merge
from keyhole.storage.chosen import Chosen
from keyhole.storage.formats.base import Form, TokenSpec


class Source(NamedTuple):
    """Chosen slots among `rows [B, Hkv, n, W]` of a form, wherever they lie."""

    form: Form
    rows: Tensor
    chosen: Chosen


def attend_sources(query: Tensor, sources: Sequence[Source], kind: TokenSpec, logits: Logits) -> Part:
    """Attention of `query [B, H, D]` over what is chosen of all sources, at least one."""
    read = [source for source in sources if source.chosen.counts.any()] or sources[:1]
    return reduce(merge, (_attend(query, source, kind, logits) for source in read))


def _attend(query: Tensor, source: Source, kind: TokenSpec, logits: Logits) -> Part:
    form, rows, (slots, counts, _) = source
    if rows.device == query.device:
        return form.attend(query, rows, kind, slots, counts, logits)
    there = slots.to(rows.device)
    keys, values = (_moved(read(rows, kind, there), query.device) for read in (form.keys, form.values))
    places = torch.arange(slots.shape[-1], device=query.device).expand(slots.shape)
    return attend_slots(query, keys, values, places, counts, logits)


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor if tensor.device == device else tensor.pin_memory().to(device, non_blocking=True)
