"""How alike the blocks are that one step after the other reads.

Legend: R batch rows x KV heads, n blocks.
"""

from __future__ import annotations

import numpy as np


class Locality:
    """Blocks read, and those of them that the step before had read too.

    Attributes:
        blocks: summed over steps that another one came before, and over heads.
        again: of these, those that were also read by the step before.
        gammas: the share of them, for each such step; `again / blocks` is its mean over all.
    """

    def __init__(self) -> None:
        self.blocks = self.again = 0
        self.gammas: list[float] = []
        self.forget()

    def read(self, wanted: np.ndarray) -> None:
        """The step reads these blocks, bool `[R, n]`, beside others."""
        self._now = wanted if self._now is None else _wider(self._now, wanted) | wanted

    def begin(self) -> None:
        """The step is over, and another one begins."""
        now, before = self._now, self._before
        if now is not None and before is not None and now.any():
            both = int((_wider(before, now) & now).sum())
            self.blocks, self.again = self.blocks + int(now.sum()), self.again + both
            self.gammas.append(both / int(now.sum()))
        self._before, self._now = now, None

    def forget(self) -> None:
        """Steps that follow are like none before."""
        self._now: np.ndarray | None = None
        self._before: np.ndarray | None = None


def _wider(blocks: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Blocks `[R, n]` among as many as there are by now."""
    return np.pad(blocks, ((0, 0), (0, like.shape[1] - blocks.shape[1])))
