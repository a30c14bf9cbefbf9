"""Random numbers that follow from where a token is and who asks, and from nothing else.

So a step draws the same sample alone and in a batch, on any machine, and again after a crop; other steps,
layers and heads draw others. Source of the mixing: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number
Generators", OOPSLA 2014 (SplitMix64).

Legend: B batch, Hkv KV heads, N slots.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole.core.layout import Regions

_ODD = -7046029254386353131  # 2**64 over the golden ratio, as a signed number
_FIRST, _SECOND = -4658895280553007687, -7723592293110705685  # multipliers of SplitMix64, as signed numbers
_DIGITS = 24  # that float32 holds


def uniform(regions: Regions, slots: int, heads: int, layer: int) -> Tensor:
    """Numbers in (0, 1] for the first so many slots of each of `heads` lists, float32 `[B, heads, N]`.

    Padding is no part of a token's position.
    """
    device = regions.first.device
    index = torch.arange(slots, device=device) - regions.starts.view(-1, 1, 1)  # [B, 1, N]
    step = regions.on_device(regions.context).view(-1, 1, 1)
    head = torch.arange(heads, device=device).view(1, -1, 1)
    asking = _mixed(_mixed(step * _ODD + layer) + head)
    bits = _shifted(_mixed(index * _ODD + asking), 64 - _DIGITS)
    return (bits + 1).float() * 2.0**-_DIGITS


def _mixed(numbers: Tensor) -> Tensor:
    """Int64 of any shape, each bit of which depends on all bits of what is given; products wrap around."""
    numbers = (numbers ^ _shifted(numbers, 30)) * _FIRST
    numbers = (numbers ^ _shifted(numbers, 27)) * _SECOND
    return numbers ^ _shifted(numbers, 31)


def _shifted(numbers: Tensor, by: int) -> Tensor:
    """To the right, zeros coming in."""
    return (numbers >> by) & ((1 << (64 - by)) - 1)
