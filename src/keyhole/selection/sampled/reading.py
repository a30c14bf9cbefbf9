"""Read tokens until the estimated error of the output is small enough.

Source: Desai et al., "vAttention: Verified Sparse Attention", arXiv 2510.05688, for heavy hitters read for
certain, a sample of the others, and a bound by the central limit theorem. There the sample is uniform and
its size follows from one smaller sample; here tokens are drawn by their estimated weight, and the sample
grows until it is enough.

Legend: B batch, H query heads, Hkv KV heads, G = H / Hkv, L lists (Hkv, or 1 for all), N slots before the
window.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from keyhole.attention import Part
from keyhole.core.layout import Regions
from keyhole.selection.base import Estimates, Selection, Selector, Step
from keyhole.selection.picking.rank import competing
from keyhole.selection.sampled.chance import uniform
from keyhole.selection.sampled.draw import Priorities, Sample
from keyhole.selection.sampled.estimate import Found, estimate

_FIRST = 64  # tokens that are read before anything is estimated
_DRAWN = 32  # of them by chance, at least: fewer do not show a spread
_GROWTH = 1.2, 2.0  # from one sample to the next, at least and at most
_CARE = 0.5  # of the growth that the error asks for: early ones are often found too large
_EVEN = 0.05  # of a token's chance of being read, what is the same for all: estimates may be far too low


class Sampled(NamedTuple):
    """What a `step` reads to keep within an error, and what was found by it."""

    step: Step
    sample: Sample
    found: Found
    selector: Selector

    @property
    def selection(self) -> Selection:
        """What is read, with its share of attention by the sample's estimate."""
        mass = self.found.mass.mean(-1).clamp(0, 1)
        return Selection(self.sample.slots, self.sample.counts.int(), mass)

    @property
    def error(self) -> Tensor:
        """A bound of the relative error of the output, float32 `[B, Hkv]`, the largest of a group."""
        return self.found.error.amax(-1)

    def rest(self, step: Step, anchor: Part) -> Part:
        """Attention of the queries of `step`, which may be others, over what was not read."""
        if step is self.step:
            return self.found.rest
        known = _estimates(self.selector, step)
        return estimate(step, anchor, self.sample, known).rest


def read_to_error(selector: Selector, step: Step, anchor: Part, layer: int) -> Sampled:
    """The fewest tokens, of a series of sizes, whose estimated error is within the step's budget.

    A row that reaches its cap, or everything, before stops there.

    Args:
        anchor: exact attention over the always-read tokens.
        layer: which, for other random numbers in each.

    Raises:
        ValueError: the selector has no estimate of each token.
    """
    known = _estimates(selector, step)
    regions, heads = step.regions, known.logits.shape[1]
    competes = _competing(regions, known.logits.shape[-1])
    weights = _weights(known, step, competes, one_list=selector.one_list)
    lists = weights.shape[1]
    most = competes.sum(-1).expand(-1, lists).minimum(step.limits_on_device().view(-1, 1))
    chance = uniform(regions, weights.shape[-1], lists, layer)
    priorities = Priorities(weights, competes, chance, int(most.max()))
    target = step.budget.error or 0.0
    counts = most.clamp(max=max(step.budget.floor, _FIRST))
    while True:
        sample = priorities.sample(counts)
        found = estimate(step, anchor, sample.shared(heads), known)
        error = found.error.amax(-1) if lists > 1 else found.error.amax((1, 2)).unsqueeze(-1)
        # An error that is no number is never small enough.
        enough = (error <= target) & ((sample.unread > 0).sum(-1) >= _DRAWN) | (counts >= most)
        if bool(enough.all()):
            break
        counts = torch.where(enough, counts, _larger(counts, error / target).minimum(most))
    return Sampled(step, sample.shared(heads), found, selector)


def _estimates(selector: Selector, step: Step) -> Estimates:
    known = selector.estimates(step)
    if known is None:
        raise ValueError(
            f"{type(selector).__name__} does not estimate each token's logit, so that no error can be kept "
            "to; give tokens, a fraction of the context or mass as budget"
        )
    return known


def _competing(regions: Regions, slots: int) -> Tensor:
    """What may be read, bool `[B, 1, slots]`."""
    inside = competing(regions, slots)
    return inside if regions.hidden is None else inside & ~regions.hidden[:, :slots].unsqueeze(1)


def _weights(known: Estimates, step: Step, competes: Tensor, *, one_list: bool) -> Tensor:
    """By which tokens are drawn, float32 `[B, L, N]`: the root mean square of heads' shares of attention.

    That is of what a token may weigh: where a logit is off by a normal number, the root mean square of the
    weight has the variance more in its logarithm. So tokens that an index knows badly are read.
    """
    likely = known.logits if known.variance is None else known.logits + known.variance
    logits = likely.masked_fill(~competes.unsqueeze(2), -torch.inf)
    total = torch.logaddexp(logits.logsumexp(-1), step.anchor_lse.view(logits.shape[:3]))
    shares = (logits - total.unsqueeze(-1)).exp().nan_to_num()
    shares = shares.square().mean((1, 2) if one_list else (2,), keepdim=True).sqrt().squeeze(2)
    return shares + _EVEN * shares.sum(-1, keepdim=True) / competes.sum(-1, keepdim=True).clamp(min=1)


def _larger(counts: Tensor, excess: Tensor) -> Tensor:
    """Sizes int64 `[B, L]` for an error so many times less: the square of it, as far as that is trusted."""
    growth = (_CARE * excess.square()).nan_to_num(nan=_GROWTH[1]).clamp(*_GROWTH)
    return (counts * growth).ceil().long()
