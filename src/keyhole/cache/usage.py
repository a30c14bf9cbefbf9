"""What decoding read, counted as it happens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from keyhole.cache.decode_step import Read
from keyhole.storage import Lookups


@dataclass
class Usage:
    """Totals over the decode steps of one layer, per batch row and KV head on average.

    Attributes:
        steps: decode steps.
        tokens: tokens of the context, evicted ones among them, summed over steps.
        read: tokens read, summed over steps.
        mass: estimated share of the softmax read, summed over steps; 1 where all that is kept was read.
        bytes: bytes of keys, values and index read by all KV heads of a batch row, summed over steps.
        hits: reads of a token by a KV head that a block cache answered, over all batch rows.
        misses: those that went past it, to a slower tier.
        fetched: bytes of a slower tier that resident slots fetched, over all batch rows.
        blocks: blocks read past resident slots by all steps but the first.
        again: of these, those that the step before had read too.
        error: bound of the relative error of the output, at 95% confidence, summed over the steps in which it
            is estimated: those that select with a budget of error.
        judged: how many these are.
    """

    steps: int = 0
    tokens: float = 0.0
    read: float = 0.0
    mass: float = 0.0
    bytes: float = 0.0
    hits: int = 0
    misses: int = 0
    fetched: int = 0
    blocks: int = 0
    again: int = 0
    error: float = 0.0
    judged: int = 0

    @property
    def gamma(self) -> float | None:
        """The mean share of a step's blocks that the step before had read too; None where none is known."""
        return self.again / self.blocks if self.blocks else None

    @property
    def mean_error(self) -> float | None:
        """Of the steps that estimate their error; None where none does."""
        return self.error / self.judged if self.judged else None

    def record_everything(self, tokens: float, kept: float, token_bytes: float) -> None:
        """Count a step that read all that is `kept` of `tokens`."""
        self._add(tokens, kept, 1.0, kept * token_bytes)

    def record_selection(self, read: Read, token_bytes: float) -> None:
        """Count a step that read a selection."""
        parts, selection = read.regions, read.selection
        real = sum(parts.context) / len(parts.context)
        always = parts.derived("mean always", lambda: _mean(parts.always_counts))
        count = _mean(selection.counts) + always
        read_bytes = count * token_bytes + read.index_bytes * selection.counts.shape[1]
        self._add(real, count, _mean(selection.mass), read_bytes)
        if read.error is not None:
            self.error += _mean(read.error)
            self.judged += 1

    def record_steps(self, steps: int, tokens: float, read: float, mass: float, read_bytes: float) -> None:
        """Count steps, each of which did this in the mean."""
        self._add(tokens * steps, read * steps, mass * steps, read_bytes * steps, steps=steps)

    def record_lookups(self, lookups: Lookups) -> None:
        """Take over what a storage's block cache has counted so far."""
        for name, count in lookups._asdict().items():
            setattr(self, name, count)

    def __add__(self, other: Usage) -> Usage:
        total = Usage(**vars(self))
        total.steps += other.steps
        total.error += other.error
        total.judged += other.judged
        for name in Lookups._fields:
            setattr(total, name, getattr(self, name) + getattr(other, name))
        total._add(other.tokens, other.read, other.mass, other.bytes, steps=0)
        return total

    def _add(self, tokens: float, read: float, mass: float, read_bytes: float, steps: int = 1) -> None:
        self.steps += steps
        self.tokens += tokens
        self.read += read
        self.mass += mass
        self.bytes += read_bytes


def _mean(few: Tensor) -> float:
    """Of so few numbers Python finds the mean faster than torch."""
    numbers = few.flatten().tolist()
    return sum(numbers) / len(numbers)
