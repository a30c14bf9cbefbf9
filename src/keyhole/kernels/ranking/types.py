"""What competes for a budget by pages, and what may be read."""

from typing import NamedTuple

from torch import Tensor


class Paged(NamedTuple):
    """What competes: slots in [first[b], stop[b]), by pages of so many."""

    first: Tensor  # int [B]
    stop: Tensor  # int [B]
    last: int  # no stop is behind it
    page: int


class Allowed(NamedTuple):
    """What may be read of each list.

    Attributes:
        limits: int64 [B], slots at most.
        most: the greatest of the limits.
        mass: pages are read until their shares and what is always read reach it; None reads to the limit.
        floor: slots at least, where there is a mass.
    """

    limits: Tensor
    most: int
    mass: float | None = None
    floor: int = 0
