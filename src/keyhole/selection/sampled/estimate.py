"""Attention over what a sample left unread, and a bound of the relative error of the output.

Each token of the sample stands for those that are not read. Where values of clusters are known, attention
over all that is unread is estimated by them, and the sample only says how far that is off (a difference
estimator); it is taken where its spread is less.

Legend: B batch, H query heads, Hkv KV heads, G = H / Hkv, N slots before the window, S slots read, D head
size, E size of values, C clusters.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.linalg import vector_norm

from keyhole.attention import Part, key_logits
from keyhole.kernels.backend.rows import at
from keyhole.kernels.tail.reference import summed_by
from keyhole.selection.base import Estimates, Means, Step
from keyhole.selection.sampled.draw import Sample
from keyhole.selection.sampled.spread import bound

_MOST = 30.0  # of an estimated logit above the exact ones, so that weights are finite
_FAR = 3.0  # standard deviations that a logit is above its estimate at most, but for one token in 740
_GAIN = (
    0.5  # of the bound without clusters, what they make of it at least: values may be far from their means
)
_SOUND = 1e-3  # of the weight that a sample alone has for the rest, below which a corrected one is not


class Found(NamedTuple):
    """What a sample says.

    Attributes:
        rest: attention over what is not read, out `[B, H, E]`, lse `[B, H]`.
        mass: float32 `[B, Hkv, G]`, the estimated share of attention on what is read.
        error: float32 `[B, Hkv, G]`, of the output, relative to its length, at 95% confidence.
    """

    rest: Part
    mass: Tensor
    error: Tensor


class _Read(NamedTuple):
    """Exact weights `[B, Hkv, G, S]` and values `[B, Hkv, S, E]` of a sample, its others `[B, Hkv, 1, S]`."""

    weights: Tensor
    values: Tensor
    unread: Tensor
    meant: Tensor


class _Rest(NamedTuple):
    """Sums over what is not read: weights `[B, Hkv, G]`, weighted values `[B, Hkv, G, E]`.

    Attributes:
        likely: float32 `[B, Hkv, G, S]`, weights that were already counted for tokens of the sample.
        means: `[B, Hkv, S, E]`, values likewise.
    """

    weight: Tensor
    values: Tensor
    likely: Tensor | None = None
    means: Tensor | None = None


def estimate(step: Step, anchor: Part, sample: Sample, known: Estimates) -> Found:
    """What a `sample` of the step's tokens says, of lists for each KV head.

    Args:
        anchor: exact attention over the always-read tokens.
        known: estimates for the step's query.
    """
    grouped = known.logits.shape[:3]
    keys, values, places = step.storage.picked(sample.slots)
    logits = key_logits(step.query, at(keys, places), step.logits)
    logits = logits.masked_fill(~sample.meant.unsqueeze(2), -torch.inf)
    begun = step.anchor_lse.view(grouped)
    top = torch.maximum(begun, logits.amax(-1))
    weights, meant = (logits - top.unsqueeze(-1)).exp(), sample.meant.unsqueeze(2)
    read = _Read(weights, at(values, places).float(), sample.unread.unsqueeze(2), meant)
    begin = (anchor.lse.view(grouped) - top).exp().unsqueeze(-1)
    always = begin * anchor.out.float().unflatten(1, grouped[1:])
    # All that is known exactly: with sink logits more weight than has values.
    exact = _Rest((begun - top).exp() + read.weights.sum(-1), always + read.weights @ read.values)
    likely = (known.logits - top.unsqueeze(-1)).clamp(max=_MOST).exp()
    rest = _by_sample(read)
    error = _judged(exact, read, rest, _feared(known, top, sample, counted=False))
    if known.means is not None:
        other = _by_means(read, known.means, likely, sample)
        its = _judged(exact, read, other, _feared(known, top, sample, counted=True))
        better = (other.weight > _SOUND * rest.weight) & (its < error)
        error = torch.where(better, its.maximum(error * _GAIN), error)
        rest = _Rest(*(_chosen(better, *pair) for pair in zip(other[:2], rest[:2], strict=True)))
    return Found(_part(rest, top, step.query), exact.weight / (exact.weight + rest.weight), error)


def _by_sample(read: _Read) -> _Rest:
    stands = read.unread * read.weights
    return _Rest(stands.sum(-1), stands @ read.values)


def _by_means(read: _Read, means: Means, likely: Tensor, sample: Sample) -> _Rest:
    """The rest by cluster, corrected by how far that is off for the sample."""
    slots = sample.slots.long()
    # What is read for certain is not estimated, and the sample stands for what it was drawn from.
    labels = means.labels.masked_fill(sample.odds == 0, -1)
    clusters = means.values.shape[2]
    by_cluster = summed_by(likely.flatten(0, 1), labels.flatten(0, 1), clusters).view(*likely.shape[:3], -1)
    own = labels.gather(-1, slots).masked_fill(~sample.meant, -1)
    counted = likely.gather(-1, slots.unsqueeze(2).expand_as(read.weights)) * (own >= 0).unsqueeze(2)
    rows = at(means.values, own.clamp(min=0)).float()
    plain = _by_sample(read)
    times = (1 + read.unread) * counted
    weight = plain.weight + by_cluster.sum(-1) - times.sum(-1)
    return _Rest(weight, plain.values + by_cluster @ means.values.float() - times @ rows, counted, rows)


def _feared(known: Estimates, top: Tensor, sample: Sample, *, counted: bool) -> Tensor | None:
    """The variance `[B, Hkv, G]` of the weight of what is not read, by what the index is known to be off.

    It does not depend on what was drawn, which may have no key in it that the index is far off for.
    Logarithms of weights are taken to be normal, up to `_FAR`. None where the index is exact.

    Args:
        counted: the estimated weights were counted, and only the differences are left.
    """
    if known.variance is None:
        return None
    logits, variance, odds = known.logits - top.unsqueeze(-1), known.variance, sample.odds.unsqueeze(2)
    square = _power(logits, variance, 2)
    if counted:
        square = square - 2 * (logits.exp() * _power(logits, variance, 1)) + (2 * logits).exp()
    # What is read for certain has none, however far off it was.
    return torch.where(odds > 0, odds * square, 0.0).sum(-1)


def _power(logits: Tensor, variance: Tensor, power: int) -> Tensor:
    """The mean of so many powers of weights whose logarithms have these means and variances, up to `_FAR`."""
    outside = torch.special.log_ndtr(_FAR - power * variance.sqrt())
    return (power * logits + power**2 / 2 * variance + outside).exp()


def _judged(exact: _Rest, read: _Read, rest: _Rest, feared: Tensor | None) -> Tensor:
    """The bound of the output's relative error with a rest, `[B, Hkv, G]`."""
    total = exact.weight + rest.weight
    out = (exact.values + rest.values) / total.unsqueeze(-1)
    # The variance of a count that is 1 / p with probability p.
    spread = (read.unread * (1 + read.unread)).sqrt()
    apart = read.values.unsqueeze(2) - out.unsqueeze(3)
    terms = (read.weights * spread).unsqueeze(-1) * apart
    if rest.likely is not None and rest.means is not None:
        terms = terms - (rest.likely * spread).unsqueeze(-1) * (rest.means.unsqueeze(2) - out.unsqueeze(3))
    if feared is not None:
        square = (vector_norm(apart, dim=-1).square() * read.meant).sum(-1)
        # Nothing is feared of what has no square, where nothing is left.
        feared = torch.where(feared > 0, feared * square / read.meant.sum(-1).clamp(min=1), feared)
    length = bound(terms, feared) / total
    # Where nothing is left there is no error, of no output either.
    return torch.where(length == 0, 0.0, length / out.norm(dim=-1))


def _chosen(first: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return torch.where(first.view(*first.shape, *[1] * (one.dim() - first.dim())), one, other)


def _part(rest: _Rest, top: Tensor, query: Tensor) -> Part:
    """The rest as attention, of relative weights."""
    none = rest.weight <= 0
    out = torch.where(none.unsqueeze(-1), 0.0, rest.values / rest.weight.unsqueeze(-1))
    lse = torch.where(none, -torch.inf, rest.weight.clamp(min=1e-45).log() + top)
    return Part(out.flatten(1, 2).to(query.dtype), lse.flatten(1, 2))
