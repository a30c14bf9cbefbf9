"""From which context length on selecting pays, by how many sequences a step serves."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

NEVER = sys.maxsize
_LONGEST = 1 << 22  # a length further than any context in use is taken for none
_ROUND = 32  # lengths are rounded up to multiples of that


class BreakEven(NamedTuple):
    """Context lengths below which a step reads everything.

    Steps that serve more sequences at once may have a length of their own; others use that of the next
    fewer, which is careful: the overhead of a step is shared by its sequences.

    Attributes:
        tokens: the length for one sequence.
        batched: `(sequences, tokens)`, ascending.
        source: what the lengths follow from, as messages name it.
    """

    tokens: int = 0
    batched: tuple[tuple[int, int], ...] = ()
    source: str = "dense_below"

    def at(self, batch: int) -> int:
        """The length for so many sequences."""
        fitting = [tokens for sequences, tokens in self.batched if sequences <= batch]
        return fitting[-1] if fitting else self.tokens

    def at_most(self, tokens: int, source: str) -> BreakEven:
        """The same, but no length above `tokens`; where one was, `source` is what they follow from."""
        if max([self.tokens, *(length for _, length in self.batched)]) <= tokens:
            return self
        batched = tuple((sequences, min(length, tokens)) for sequences, length in self.batched)
        return BreakEven(min(self.tokens, tokens), batched, source)


ALWAYS = BreakEven()


def first_paying(loss: Callable[[int], float]) -> int:
    """The length from which on a `loss` is not positive, rounded up; NEVER if there is none in reach.

    The loss may be negative below that length, too, but must not become positive again beyond it.
    """
    if loss(_LONGEST) > 0:
        return NEVER
    losing, paying = 0, _LONGEST
    while paying - losing > 1:
        middle = (losing + paying) // 2
        losing, paying = (losing, middle) if loss(middle) <= 0 else (middle, paying)
    return -(-paying // _ROUND) * _ROUND
