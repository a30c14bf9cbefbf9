"""Keys of small norm get most attention, so they are kept.

Source: Devoto et al., "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression", arXiv
2406.11430.
"""

from __future__ import annotations

from torch import Tensor

from keyhole.retention.base import Scorer, ScorerInput
from keyhole.retention.kept import Kept
from keyhole.storage import Storage


class KeyNorm(Scorer):
    """The negative L2 norm of a token's key; rotation does not change it."""

    looks_back = 0

    def see(self, seen: ScorerInput) -> None:
        """Nothing is noted."""

    def scores(self, storage: Storage, kept: Kept) -> Tensor:  # noqa: ARG002
        return -storage.keys().float().norm(dim=-1)
