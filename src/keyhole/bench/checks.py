"""What must hold before a time means anything.

Legend: B batch, H query heads, Hkv KV heads, G = H / Hkv, S slots read, D head size.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from keyhole.attention import Logits, Part, merge
from keyhole.cache.base import Observation
from keyhole.cache.evicting import EvictingLayer
from keyhole.cache.layer import LayerCache

# Largest error allowed, as a share of the largest value: rounding of the dtype, and of sums over many tokens.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class CheckFailedError(RuntimeError):
    """An operation computes something wrong; its time is not reported."""


def check_close(
    what: str, found: Tensor, expected: Tensor, dtype: torch.dtype, size: float | None = None
) -> None:
    """Compare with what is right; errors are measured by `size`, the largest expected value unless given.

    Raises:
        CheckFailedError: too far off, or not finite.
    """
    size = float(expected.abs().max()) if size is None else size
    error = float((found.double() - expected.double()).abs().max()) / max(
        size, torch.finfo(torch.float32).tiny
    )
    # Written so that NaN fails.
    if not error <= _TOLERANCE[dtype]:
        raise CheckFailedError(
            f"{what} is off by {error:.1e} of the largest value, more than {_TOLERANCE[dtype]:.0e}; "
            "no time is reported"
        )


def check_selective_step(layer: LayerCache, query: Tensor, logits: Logits) -> None:
    """Attend once and compare with exact attention over the set that was read.

    Raises:
        CheckFailedError: they differ, or a slot was read twice or is outside.
    """
    with layer.observed() as seen:
        out = layer.attend(query, logits)
    check_observation(seen[0] if seen else None, layer, query, out, logits)


def check_observation(
    seen: Observation | None, layer: LayerCache, query: Tensor, out: Tensor, logits: Logits
) -> None:
    """Compare `out [B, H, 1, Dv]` of a step with exact attention over what it read; None means everything."""
    keys, values = layer.storage.keys(), layer.storage.values()
    groups = query.shape[1] // keys.shape[1]
    for row, head in product(range(keys.shape[0]), range(keys.shape[1])):
        slots = slots_read(seen, head, keys.shape[2], row).to(keys.device)[_filling(layer, row, head) :]
        asked = query[row, head * groups : (head + 1) * groups, 0].float()
        products = asked @ keys[row, head, slots].float().T * logits.scale
        picked = values[row, head, slots].float()
        expected = products.softmax(-1) @ picked
        if seen is not None and seen.read.rest is not None:
            heads = slice(head * groups, (head + 1) * groups)
            rest = Part(*(part[row, heads].float() for part in seen.read.rest))
            expected = merge(Part(expected, products.logsumexp(-1)), rest).out
        found = out[row, head * groups : (head + 1) * groups, 0]
        check_close("attention over what was read", found, expected, values.dtype, float(picked.abs().max()))


def _filling(layer: LayerCache, row: int, head: int) -> int:
    """Slots that a head begins with and that are no tokens, where heads keep different numbers."""
    return int(layer.kept.filling[row, head]) if isinstance(layer, EvictingLayer) else 0


def slots_read(seen: Observation | None, head: int, tokens: int, row: int = 0) -> Tensor:
    """The slots `[S]` a KV head of a batch row read in a step."""
    if seen is None:
        return torch.arange(tokens)
    selection, regions = seen.read.selection, seen.read.regions
    picked = selection.slots[row, head, : int(selection.counts[row, head])]
    slots = torch.cat([regions.always[row, : int(regions.always_counts[row])], picked]).long()
    if slots.unique().numel() < slots.numel() or int(slots.min()) < 0 or int(slots.max()) >= tokens:
        raise CheckFailedError(
            f"KV head {head} read a slot twice, or outside 0 to {tokens - 1}; no time is reported"
        )
    return slots
