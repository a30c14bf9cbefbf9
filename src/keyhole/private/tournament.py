"""How the greatest of many secret numbers is found: groups in which all pairs are compared at once.

Wide groups take few rounds and many comparisons. Which widths are best follows from public sizes.
"""

from __future__ import annotations

import math
from functools import lru_cache

from keyhole.private.rates import COMPARED, MARKED, NOTHING, NUMBER, Sent, every

ROUND = 100_000  # bytes that a round is worth; a LAN of 3 Gbps and 0.4 ms carries 450,000 meanwhile
_WIDEST = 16


@lru_cache(maxsize=1024)
def widths(count: int, rows: int) -> tuple[int, ...]:
    """Widths of the groups, level by level, for `rows` times `count` numbers."""
    if count == 1:
        return ()
    options = [
        (width, *widths(math.ceil(count / width), rows)) for width in range(2, min(count, _WIDEST) + 1)
    ]
    return min(options, key=lambda option: _worth(spent(count, rows, option)))


def spent(count: int, rows: int, chosen: tuple[int, ...]) -> Sent:
    """What a tournament of these widths sends."""
    total = NOTHING
    for width in chosen:
        groups, left = divmod(count, width)
        one = COMPARED.of(width * (width - 1) / 2) + every(width - 1).of(width - 1)
        one += (NUMBER + MARKED).of(width - 1)
        total += one.of(rows * math.ceil(count / width))
        count = groups + bool(left)
    return total


def _worth(sent: Sent) -> float:
    return sent.bytes + ROUND * sent.messages
