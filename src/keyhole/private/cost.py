"""What sends how many bytes: a model of ABY3 over 64 bits, summed over its three parties, and what it
decides."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from keyhole.private import sizes
from keyhole.private.settings import Amount, Settings
from keyhole.private.sizes import Reading

# Bytes for each number, measured with SPU 0.9.5 (`keyhole private bench`).
MARKED = 24  # a result of a product with marks or other whole numbers
PRODUCT = 52  # one of fractions, which is truncated
SOFTMAX = 664  # a logit: its part in the maximum, exp, its clip
COMPARED = 136  # a pair, and whether it is in order as a number


class Attended(NamedTuple):
    """Bytes of one layer's decode attention, by part."""

    choosing: float
    gathering: float
    attending: float

    @property
    def total(self) -> float:
        return sum(self)


class Heads(NamedTuple):
    """The shape of a layer's attention."""

    kv_heads: int
    group: int
    head_dim: int


def full(heads: Heads, tokens: int) -> Attended:
    """Attention over so many tokens."""
    queries = heads.kv_heads * heads.group
    return Attended(0, 0, queries * (tokens * (PRODUCT + SOFTMAX) + 2 * PRODUCT * heads.head_dim))


def selected(heads: Heads, settings: Settings, reading: Reading, slots: int, gather: str) -> Attended:
    """Attention over a selection."""
    queries, fine = heads.kv_heads * heads.group, settings.fine
    always, read = slots - reading.stop + reading.first, reading.ranked * fine
    region = math.ceil(reading.stop / fine) * fine - reading.first
    if gather == "rows":
        gathering = heads.kv_heads * read * 2 * heads.head_dim * MARKED
        products = always + read
    else:
        gathering = queries * (read + region) * MARKED
        products = slots
    attending = queries * (products * PRODUCT + (always + read) * SOFTMAX + 2 * PRODUCT * heads.head_dim)
    return Attended(_choosing(heads, settings, reading, region // fine), gathering, attending)


def _choosing(heads: Heads, settings: Settings, reading: Reading, clusters: int) -> float:
    if not reading.survivors:
        return heads.kv_heads * _ranked(clusters, reading.ranked)
    each = settings.coarse // settings.fine
    coarse = math.ceil(clusters / each)
    children = reading.survivors * each
    moved = reading.survivors * each * MARKED + reading.ranked * coarse * each * MARKED
    second = (
        clusters * PRODUCT + children * COMPARED * (children - 1) / 2 + reading.ranked * children * COMPARED
    )
    return heads.kv_heads * (_ranked(coarse, reading.survivors) + second + moved)


def _ranked(clusters: int, best: int) -> float:
    return clusters * PRODUCT + clusters * (clusters - 1) / 2 * COMPARED + best * clusters * COMPARED


def predicted(heads: Heads, settings: Settings, reading: Reading | None, slots: int) -> float:
    """Bytes of one layer's attention at one step, over `slots` tokens or a selection of them."""
    if reading is None:
        return full(heads, slots).total
    gather = cheaper_gather(settings, reading, heads, slots)
    return selected(heads, settings, reading, slots, gather).total


def cheaper_gather(settings: Settings, reading: Reading, query: tuple[int, ...], slots: int) -> str:
    """How a selection is read: as set, or what sends less.

    Args:
        query: shape of the step's queries `[Hkv, G, D]`.
    """
    if settings.gather != "auto":
        return settings.gather
    heads = Heads(*query)
    return min(("rows", "logits"), key=lambda gather: selected(heads, settings, reading, slots, gather).total)


def plan(heads: Heads, settings: Settings, prompt: int) -> tuple[Settings, str]:
    """Whether selecting pays after a prompt of so many tokens: settings to use, and why.

    Where it does not, everything that is kept is read.
    """
    step = sizes.steps(settings, prompt, 1)[0]
    whole = full(heads, step.kept).total
    dense = full(heads, prompt + 1).total
    share = f"{dense / 1e6:.2f} MB a step and layer over all {prompt + 1} tokens"
    if step.reading is None:
        return settings, f"{whole / 1e6:.2f} MB over the {step.kept} that are kept, {share}"
    bytes_ = predicted(heads, settings, step.reading, step.kept)
    compared = (
        f"selecting sends {bytes_ / 1e6:.2f} MB, reading the {step.kept} kept tokens {whole / 1e6:.2f} MB"
    )
    if bytes_ < whole:
        return settings, f"{compared}, {share}"
    return replace(settings, budget=Amount(fraction=1.0)), f"{compared}, so nothing is selected; {share}"
