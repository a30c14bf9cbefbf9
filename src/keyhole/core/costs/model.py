"""The cost of one layer's decode step: a fixed overhead, and each unit of its work at its own rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

_MOST_THREADS = 8  # from there on memory bandwidth is shared, and more threads gain little


@dataclass(frozen=True)
class Heads:
    """The sizes of one attention layer, the type of its numbers, and how many sequences a step serves.

    Raises:
        ValueError: a size below 1, or query heads that the KV heads do not divide.
    """

    query_heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    dtype: torch.dtype
    batch: int = 1

    def __post_init__(self) -> None:
        for name in ("query_heads", "kv_heads", "head_dim", "value_dim", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is out of range; give at least 1")
        if self.query_heads % self.kv_heads:
            raise ValueError(
                f"{self.query_heads} query heads are not a multiple of {self.kv_heads} KV heads; give a "
                "multiple"
            )


class Work(NamedTuple):
    """What a step moves and computes, all sequences and KV heads together.

    Attributes:
        scanned: bytes of the index read.
        ranked: tokens that are scored, and ranked where they are selected from.
        read: bytes of keys and values read.
    """

    scanned: float = 0.0
    ranked: float = 0.0
    read: float = 0.0


class Rates(NamedTuple):
    """How long a step of one method takes on one thread.

    Attributes:
        overhead: microseconds, whatever the work.
        per_unit: nanoseconds for a unit of each kind of work.
    """

    overhead: float
    per_unit: Work

    def microseconds(self, work: Work, threads: int = 1) -> float:
        """The time of a step. Threads share the work; the overhead is paid once, by one of them."""
        shared = min(max(threads, 1), _MOST_THREADS)
        units = sum(amount * rate for amount, rate in zip(work, self.per_unit, strict=True))
        return self.overhead + units / (1000 * shared)
