"""Codes of 2, 3, 4 or 8 bits in bytes, each behind those before it, from the lowest bit of a byte on."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BITS = (8, 4, 3, 2)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """uint8 `[..., ceil(D * bits / 8)]` of integer codes `[..., D]` below 2 ** bits."""
    size, (unit, shifts) = codes.shape[-1], _word(bits, codes.device)
    padded = torch.nn.functional.pad(codes.int(), (0, -size % len(shifts)))
    words = (padded.unflatten(-1, (-1, len(shifts))) << shifts).sum(-1, dtype=torch.int32)
    places = 8 * torch.arange(unit, dtype=torch.int32, device=codes.device)
    packed = (words.unsqueeze(-1) >> places & 255).to(torch.uint8).flatten(-2)
    return packed[..., : -(-size * bits // 8)]


def unpack_codes(packed: Tensor, bits: int, size: int) -> Tensor:
    """The codes `[..., size]` that `pack_codes` packed, integers."""
    if bits == 8:
        return packed
    unit, shifts = _word(bits, packed.device)
    if unit == 1:
        codes = packed.unsqueeze(-1) >> shifts.to(torch.uint8) & 2**bits - 1
        return codes.flatten(-2)[..., :size]
    padded = torch.nn.functional.pad(packed, (0, -packed.shape[-1] % unit)).unflatten(-1, (-1, unit)).int()
    places = 8 * torch.arange(unit, dtype=torch.int32, device=packed.device)
    words = (padded << places).sum(-1, keepdim=True, dtype=torch.int32)
    return (words >> shifts & 2**bits - 1).flatten(-2)[..., :size]


def _word(bits: int, device: torch.device) -> tuple[int, Tensor]:
    """Bytes after which a code begins at a byte again, and where the codes in them begin."""
    unit = math.lcm(bits, 8) // 8
    return unit, torch.arange(0, 8 * unit, bits, dtype=torch.int32, device=device)
