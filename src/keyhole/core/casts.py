"""Conversions between number formats."""

from __future__ import annotations

import torch
from torch import Tensor


def saturated(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in a dtype; numbers beyond its range become its largest, not infinity."""
    most = torch.finfo(dtype).max
    return tensor.clamp(-most, most).to(dtype)
