"""What operations of ABY3 over 64 bits send, measured with SPU 0.9.5 (`keyhole private bench --operations`).

Bytes are for each number and summed over the three parties, messages are those of one party, of which no
next one leaves before the last has come: they are the rounds.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Sent(NamedTuple):
    """What an operation, or several after each other, send."""

    bytes: float
    messages: float

    def __add__(self, other: tuple[float, ...]) -> Sent:  # pyright: ignore[reportIncompatibleMethodOverride]
        return Sent(self.bytes + other[0], self.messages + other[1])

    def of(self, numbers: float) -> Sent:
        """So many numbers at once."""
        return Sent(self.bytes * numbers, self.messages if numbers else 0.0)


NOTHING = Sent(0, 0)
TRUNCATED = Sent(28, 5 / 3)  # after a product with a public fraction
MARKED = Sent(24, 1)  # a result of a product with marks or other whole numbers
PRODUCT = MARKED + TRUNCATED  # one of two secret fractions
COMPARED = Sent(108, 8)  # a comparison, as a bit
BOTH = Sent(3, 1)  # an "and" of two bits
NUMBER = Sent(32, 4 / 3)  # a bit as a number
SEALED = Sent(24, 1)  # a public 0 among secret numbers


def every(bits: int) -> Sent:
    """Whether all of so many bits are set, in a tree."""
    return Sent(BOTH.bytes * (bits - 1), BOTH.messages * math.ceil(math.log2(bits))) if bits > 1 else NOTHING


STEP = 2 ** (1 / 3)  # sums of weights are brought near 1 by a power of it


def steps_of(most: int) -> int:
    """Powers of `STEP` above 1 that a sum of so many weights may exceed."""
    return max(math.ceil(3 * math.log2(most)), 1)
