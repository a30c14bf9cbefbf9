"""95% confidence intervals by resampling texts (Efron, "Bootstrap Methods: Another Look at the Jackknife",
1979). Tokens of one text are not independent, so whole texts are drawn.

Legend: T texts, N tokens of each.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
_DRAWS, _SEED, _TAIL = 2000, 0, 2.5


def interval(values: Numbers, statistic: Callable[[Numbers], Numbers]) -> tuple[float, float] | None:
    """The interval of a statistic of `values [T, N]`; None for a single text.

    The same draws are used for every statistic, so results of several methods are paired, and repeat exactly.

    Args:
        statistic: of numbers `[draws, T * N]`, over the last axis.
    """
    if len(values) < 2:
        return None
    drawn = values[_draws(len(values))].reshape(_DRAWS, -1)
    low, high = np.percentile(statistic(drawn), (_TAIL, 100 - _TAIL))
    return float(low), float(high)


@cache
def _draws(texts: int) -> NDArray[np.int64]:
    """Which texts are drawn, `[draws, T]`."""
    return np.random.default_rng(_SEED).integers(0, texts, (_DRAWS, texts))
