"""Where two lines of measured times cross."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

NEVER = sys.maxsize
_REACH = 4  # a crossing further than so many times the longest length measured is taken for none


class Point(NamedTuple):
    """Median milliseconds of a step at one length."""

    tokens: int
    selective: float
    dense: float

    @property
    def loss(self) -> float:
        """Milliseconds that selecting costs more than it saves."""
        return self.selective - self.dense


def crossing(points: Sequence[Point]) -> int:
    """The length from which on selecting is faster, on the line between the points around it.

    Where it is still slower at the last point, the line through the last two is drawn on; NEVER if that does
    not come down in reach.
    """
    slower = [index for index, point in enumerate(points) if point.loss >= 0]
    if points and not slower:
        return points[0].tokens
    start = min(slower[-1], len(points) - 2) if slower else -1
    if start < 0:
        return NEVER
    first, second = points[start], points[start + 1]
    gained = first.loss - second.loss
    if gained <= 0:
        return NEVER
    tokens = second.tokens + second.loss * (second.tokens - first.tokens) / gained
    return round(tokens) if tokens <= _REACH * points[-1].tokens else NEVER
