"""Which tokens of a prompt an index is fitted on."""

from __future__ import annotations

import torch
from torch import Tensor

_SEED = 0


def sample_slots(tokens: int, first: Tensor, size: int) -> Tensor:
    """Slots drawn at random from [first, tokens) of each batch row, int64 `[B, size]`.

    A row with fewer repeats its own, to be as long as its siblings.
    """
    drawn = []
    for start in first.tolist():
        # Seeded again, so that a row does not depend on its siblings.
        generator = torch.Generator().manual_seed(_SEED)
        order = start + torch.randperm(tokens - start, generator=generator)
        repeats = -(-size // order.numel())
        drawn.append(order.repeat(repeats)[:size])
    return torch.stack(drawn).to(first.device)
