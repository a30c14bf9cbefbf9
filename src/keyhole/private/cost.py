"""What one layer's decode attention sends: a model of ABY3 over 64 bits, and what it decides."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from keyhole.private import sizes, tournament
from keyhole.private.network import Network
from keyhole.private.packing import spent
from keyhole.private.rates import COMPARED, MARKED, NUMBER, PRODUCT, SEALED, TRUNCATED, Sent, steps_of
from keyhole.private.settings import Amount, Settings
from keyhole.private.sizes import Reading

_EXP = Sent(52 * 6, 16) + COMPARED + Sent(64, 8 / 3)  # six products, a comparison, and a product with its bit


class Heads(NamedTuple):
    """The shape of a layer's attention."""

    kv_heads: int
    group: int
    head_dim: int

    @property
    def queries(self) -> int:
        return self.kv_heads * self.group


def full(heads: Heads, tokens: int) -> Sent:
    """Attention over so many tokens."""
    return _logits(heads, tokens) + _softmax(heads, tokens) + _values(heads, tokens) + SEALED


def selected(heads: Heads, settings: Settings, reading: Reading, slots: int, gather: str) -> Sent:
    """Attention over a selection."""
    fine, read = settings.fine, reading.ranked * settings.fine
    always = slots - reading.stop + reading.first
    clusters = math.ceil(reading.stop / fine) - reading.first // fine
    sent = _choosing(heads, settings, reading, clusters) + _softmax(heads, always + read) + SEALED
    hot = (heads.kv_heads, reading.ranked, clusters)
    if gather == "rows":
        sent += spent(MARKED, *hot, fine * 2 * heads.head_dim)
        return sent + _logits(heads, always + read) + _values(heads, always + read)
    for shape in (hot, (heads.kv_heads, clusters, reading.ranked)):
        sent += spent(MARKED, *shape, heads.group * fine)
    return sent + _logits(heads, slots) + _values(heads, slots)


def _logits(heads: Heads, tokens: int) -> Sent:
    return spent(PRODUCT, heads.kv_heads, heads.group, heads.head_dim, tokens)


def _values(heads: Heads, tokens: int) -> Sent:
    return spent(PRODUCT, heads.kv_heads, heads.group, tokens, heads.head_dim)


def _softmax(heads: Heads, tokens: int) -> Sent:
    """The greatest logit, powers, the reciprocal of their sum, and its products with what was read."""
    queries, steps = heads.queries, steps_of(tokens)
    greatest = tournament.spent(tokens, queries, tournament.widths(tokens, queries))
    factor = (COMPARED + NUMBER).of(queries * steps) + TRUNCATED.of(queries)
    inverse = PRODUCT.of(queries * (heads.head_dim + 1)) + TRUNCATED.of(queries)
    inverse += PRODUCT.of(queries) + PRODUCT.of(queries)
    return greatest + _EXP.of(queries * tokens) + factor + inverse + PRODUCT.of(queries * heads.head_dim)


def _choosing(heads: Heads, settings: Settings, reading: Reading, clusters: int) -> Sent:
    kv = heads.kv_heads
    if not reading.survivors:
        scores = spent(PRODUCT, kv, 1, heads.head_dim, clusters)
        return scores + _ranked(kv, clusters, reading.ranked)
    each = settings.coarse // settings.fine
    coarse = math.ceil(clusters / each)
    first = spent(PRODUCT, kv, 1, heads.head_dim, coarse) + _ranked(kv, coarse, reading.survivors)
    second = spent(PRODUCT, kv, 1, heads.head_dim, coarse * each)
    second += spent(MARKED, kv, reading.survivors, coarse, each)
    second += _ranked(kv, reading.survivors * each, reading.ranked)
    return first + second + spent(MARKED, kv, reading.ranked * each, reading.survivors, coarse)


def _ranked(rows: int, clusters: int, best: int) -> Sent:
    """Marks of the `best`: all pairs are compared, then places with 1, 2, ..."""
    pairs = clusters * (clusters - 1) / 2
    return (COMPARED + NUMBER).of(rows * pairs) + (COMPARED + NUMBER).of(rows * best * clusters)


def predicted(heads: Heads, settings: Settings, reading: Reading | None, slots: int) -> Sent:
    """What one layer's attention at one step sends, over `slots` tokens or a selection of them."""
    if reading is None:
        return full(heads, slots)
    return selected(heads, settings, reading, slots, cheaper_gather(settings, reading, heads, slots))


def cheaper_gather(settings: Settings, reading: Reading, query: tuple[int, ...], slots: int) -> str:
    """How a selection is read: as set, or what sends less.

    Args:
        query: shape of the step's queries `[Hkv, G, D]`.
    """
    if settings.gather != "auto":
        return settings.gather
    heads = Heads(*query)
    ways = {way: selected(heads, settings, reading, slots, way) for way in ("rows", "logits")}
    return min(ways, key=lambda way: ways[way].bytes + tournament.ROUND * ways[way].messages)


def plan(heads: Heads, settings: Settings, prompt: int, network: Network) -> tuple[Settings, str]:
    """Whether selecting pays after a prompt of so many tokens on this network: settings to use, and why.

    Where it does not, everything that is kept is read. Layers that follow another one's selection are counted
    with `share`: half of all.
    """
    step = sizes.steps(settings, prompt, 1)[0]
    dense, whole = full(heads, prompt + 1), full(heads, step.kept)
    over = f"{_told(dense, network)} a step and layer over all {prompt + 1} tokens"
    if step.reading is None:
        return settings, f"{_told(whole, network)} over the {step.kept} that are kept, {over}"
    chosen = predicted(heads, settings, step.reading, step.kept)
    if settings.share:
        clusters = math.ceil(step.reading.stop / settings.fine) - step.reading.first // settings.fine
        choosing = _choosing(heads, settings, step.reading, clusters)
        chosen += (-choosing.bytes / 2, -choosing.messages / 2)
    says = f"selecting takes {_told(chosen, network)}, reading the {step.kept} kept tokens "
    says += _told(whole, network)
    if network.seconds(chosen) < network.seconds(whole):
        return settings, f"{says}, {over}"
    why = f"{says}, so nothing is selected; {over}"
    return replace(settings, budget=Amount(fraction=1.0)), why


def _told(sent: Sent, network: Network) -> str:
    return f"{sent.bytes / 1e6:.2f} MB, {sent.messages:.0f} messages and {network.seconds(sent):.2f} s"
