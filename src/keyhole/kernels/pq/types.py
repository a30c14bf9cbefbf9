"""What a buffer of codes looks like, and what is picked by them."""

from typing import NamedTuple

from torch import Tensor

BLOCK = 64


class Picked(NamedTuple):
    slots: Tensor  # int32 [R, width], ascending in slots[r, :counts[r]], 0 beyond
    counts: Tensor  # int32 [R]
    mass: Tensor  # float32 [R]: estimated share of attention mass in the picked slots and the anchors


class Budget(NamedTuple):
    """Between `floor` and `cap` slots: as few as reach the mass. A fixed number is floor = cap, mass 0."""

    floor: int
    cap: int
    mass: float
