"""Thresholds of SALE that share the error of a layer's output among its heads.

A head whose output is small beside others', or that would have to read much for a little accuracy, may be
less exact than one that is cheap to compute well.

Shapes: B batch, H query heads, Q queries, D size of a value, S steps of the grid of thresholds.
"""

from __future__ import annotations

from bisect import bisect_left

import torch
from torch import Tensor

from keyhole import kernels
from keyhole.attention import Logits
from keyhole.kernels import Reach

_PRICES = torch.logspace(
    -6, 12, 3601, dtype=torch.float64
).tolist()  # the price of an error, as a share of keys read


class LayerFit:
    """A threshold for each head, so that least is read while a layer's error is no more than `error`.

    The error is the norm of the error of all heads' output over the norm of the output, on any prompt seen.

    Args:
        reach: what a tile reads for certain.
        grid: `[S]`, thresholds in falling order; of the last, 0, nothing is computed: it reads everything.
    """

    def __init__(self, reach: Reach, error: float, grid: list[float]) -> None:
        self.reach, self.error, self.grid = reach, error, grid
        self._errors = self._reads = torch.zeros(())  # `[S, H]`: squares, of the largest prompt; sums
        self._prompts = 0

    @property
    def tau(self) -> Tensor:
        """float32 `[H]`."""
        if not self._prompts:
            return torch.zeros(())
        return torch.tensor(self.grid)[cheapest(self._errors, self._reads / self._prompts, self.error**2)]

    @torch.no_grad()
    def see(self, query: Tensor, keys: Tensor, values: Tensor, logits: Logits, out: Tensor) -> None:
        """Take in a prompt without padding, and the dense `out [B, H, Q, D]` of it."""
        heads, size = query.shape[1], out.float().square().sum().clamp(min=torch.finfo(torch.float32).tiny)
        errors = torch.zeros(len(self.grid), heads, dtype=torch.float64)
        reads = torch.ones_like(errors)
        for step, tau in enumerate(self.grid[:-1]):
            taus = torch.full((heads,), tau, device=query.device)
            found = kernels.sale_attention(query, keys, values, taus, scale=logits.scale, reach=self.reach)
            errors[step] = ((found.out.float() - out.float()).square().sum((0, 2, 3)) / size).double().cpu()
            reads[step] = found.kept.double().mean((0, 2)).cpu() / keys.shape[2]
            if float(errors[step].sum()) <= self.error**2 / 16:
                # Smaller ones would be of no use, and are not tried: as good as this one, at the full price.
                errors[step + 1 : -1] = errors[step]
                break
        self._errors, self._reads = torch.maximum(self._errors, errors), self._reads + reads
        self._prompts += 1


def cheapest(errors: Tensor, reads: Tensor, allowed: float) -> Tensor:
    """Steps `[H]` of `errors` and `reads [S, H]` that read least while their errors sum to `allowed` at most.

    Those on the convex hull are found: each head takes the step that is best at one price of an error.
    """

    def steps(price: float) -> Tensor:
        return (reads + price * errors).argmin(0)

    def fits(price: float) -> bool:
        return float(errors.gather(0, steps(price).unsqueeze(0)).sum()) <= allowed

    place = bisect_left(_PRICES, True, key=fits)
    return steps(_PRICES[place]) if place < len(_PRICES) else errors.argmin(0)
