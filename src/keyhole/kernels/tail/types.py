"""Operands of attention over what is not read."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Summed(NamedTuple):
    """Clusters of tokens.

    Attributes:
        keys: sums of keys, float32 or bfloat16 `[R, C, D]`.
        values: sums of values, likewise `[R, C, E]`.
        counts: int32 `[R, C]`.
    """

    keys: Tensor
    values: Tensor
    counts: Tensor


class Read(NamedTuple):
    """Tokens of the clusters that are read.

    Attributes:
        keys: `[R, cap, D]`.
        values: `[R, cap, E]`.
        places: integers `[R, S]`, where they are in these.
        labels: integers `[R, S]`, their clusters; negative for those in none.
    """

    keys: Tensor
    values: Tensor
    places: Tensor
    labels: Tensor
