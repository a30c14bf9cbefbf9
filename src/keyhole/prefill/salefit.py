"""Thresholds of SALE for the heads of a layer, by the error that they make in its output.

Source: arXiv 2505.24179, which halves a threshold until a head's error is small enough. Its error is the
absolute one of a token, summed over the size of a value: it depends on how large values are. Here a relative
one can be had: the same for all heads, layers and models; and one of a layer, which heads share.

Shapes: B batch, H query heads, Q queries, D size of a value.
"""

from __future__ import annotations

import torch
from torch import Tensor

from keyhole import kernels
from keyhole.attention import Logits
from keyhole.kernels import Reach
from keyhole.prefill.salelayer import LayerFit

FIRST = 0.512  # the paper begins with 0.008, which is on the same grid
_LEAST = 1e-5  # a threshold of no more keeps nearly everything: 0 then, without the estimate
_FINER = 0.5**0.5  # heads that share an error use up more of it than by halves
KINDS = ("layer", "relative", "absolute")


def grid(first: float = FIRST, *, ratio: float = 0.5) -> list[float]:
    """The thresholds that are tried, from the largest, each `ratio` times the one before, and 0 at last."""
    taus = [first]
    while taus[-1] * ratio > _LEAST:
        taus.append(taus[-1] * ratio)
    return [*taus, 0.0]


def threshold_fit(reach: Reach, error: float, kind: str) -> LayerFit | ThresholdFit:
    """Finds the thresholds of a layer: `see` prompts, then `tau`.

    Args:
        kind: of error: "layer", see `LayerFit`, or one that holds for each head, see `ThresholdFit`.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not one of {', '.join(KINDS)}")
    if not error >= 0:
        raise ValueError(f"error={error} is out of range; give at least 0")
    if kind == "layer":
        return LayerFit(reach, error, grid(ratio=_FINER))
    return ThresholdFit(reach, error, kind=kind)


class ThresholdFit:
    """The largest threshold for each head whose error is no more than `error` on any prompt seen.

    Args:
        reach: what a tile reads for certain.
        error: "relative": the norm of the output's error over the norm of the output; "absolute": the error
            of a token's output, summed over its D numbers, a mean over tokens.
        first: the largest threshold tried.
    """

    def __init__(self, reach: Reach, error: float, *, kind: str = "relative", first: float = FIRST) -> None:
        self.reach, self.error, self.kind, self.grid = reach, error, kind, grid(first)
        self._found = torch.zeros((), dtype=torch.long)  # `[H]`, places in the grid

    @property
    def tau(self) -> Tensor:
        """float32 `[H]`."""
        return torch.tensor(self.grid)[self._found]

    @torch.no_grad()
    def see(self, query: Tensor, keys: Tensor, values: Tensor, logits: Logits, out: Tensor) -> None:
        """Take in a prompt without padding, and the dense `out [B, H, Q, D]` of it.

        Each prompt is judged by itself, so their order does not matter.
        """
        places = torch.zeros(query.shape[1], dtype=torch.long)
        open_heads = torch.ones_like(places, dtype=torch.bool)
        # What is settled is made cheap: nothing beside what is always read.
        settled = torch.tensor(torch.finfo(torch.float32).max)
        while open_heads.any():
            tau = torch.where(open_heads, torch.tensor(self.grid)[places], settled)
            found = kernels.sale_attention(
                query, keys, values, tau.to(query.device), scale=logits.scale, reach=self.reach
            )
            good = self._error(found.out, out) <= self.error
            open_heads &= ~good
            places += open_heads
            open_heads &= places < len(self.grid) - 1
        self._found = torch.maximum(self._found, places)

    def _error(self, found: Tensor, out: Tensor) -> Tensor:
        difference = found.float() - out.float()
        if self.kind == "absolute":
            return difference.abs().sum(-1).mean((0, 2)).cpu()
        size = out.float().square().sum((0, 2, 3)).clamp(min=torch.finfo(torch.float32).tiny)
        return (difference.square().sum((0, 2, 3)) / size).sqrt().cpu()
