"""From which context length on selecting pays, by how many sequences a step serves."""

from __future__ import annotations

from typing import NamedTuple


class BreakEven(NamedTuple):
    """Context lengths below which a step reads everything.

    Steps that serve more sequences at once may go by a length of their own; others go by that of the next
    fewer, which is careful: what a step costs beside reading is shared by its sequences.

    Attributes:
        tokens: the length for one sequence.
        batched: `(sequences, tokens)`, ascending.
    """

    tokens: int = 0
    batched: tuple[tuple[int, int], ...] = ()

    def at(self, batch: int) -> int:
        """The length for so many sequences."""
        fitting = [tokens for sequences, tokens in self.batched if sequences <= batch]
        return fitting[-1] if fitting else self.tokens


ALWAYS = BreakEven()
