"""How a product of several heads is computed.

SPU takes those of a batch one after another, each in rounds of its own, so that all at once is better where
that is little more work.
"""

from __future__ import annotations

from keyhole.private.rates import PRODUCT, Sent
from keyhole.private.tournament import ROUND

_WORK = 1 << 14  # entries of the left matrix; SPU 0.9.5 takes some 5 us for each, whatever the right one has


def way_of(heads: int, rows: int, inner: int, columns: int) -> str:
    """Of products `[heads, rows, inner]` times `[heads, inner, columns]`.

    Returns:
        "diagonal": one product, in which each row is 0 but for its own head; no more bytes. "wide": one
        of all heads with all heads, of which a head's own is kept. "apart": one after another.
    """
    if heads == 1:
        return "apart"
    if heads * heads * rows * inner <= _WORK:
        return "diagonal"
    spared = (heads - 1) * PRODUCT.messages * ROUND
    wasted = heads * (heads - 1) * rows * columns * PRODUCT.bytes
    return "wide" if heads * rows * inner <= _WORK and wasted < spared else "apart"


def spent(each: Sent, heads: int, rows: int, inner: int, columns: int) -> Sent:
    """What the product sends, if a result sends `each`."""
    way, results = way_of(heads, rows, inner, columns), heads * rows * columns
    if way == "apart":
        return Sent(each.bytes * results, each.messages * heads)
    return each.of(results * heads if way == "wide" else results)
