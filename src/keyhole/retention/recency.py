"""The newest tokens score highest (StreamingLLM).

Source: "Efficient Streaming Language Models with Attention Sinks", arXiv 2309.17453.
"""

from __future__ import annotations

from torch import Tensor

from keyhole.retention.base import Scorer, ScorerInput
from keyhole.retention.kept import Kept
from keyhole.storage import Storage


class Recency(Scorer):
    """A token scores its position."""

    looks_back = 0

    def see(self, seen: ScorerInput) -> None:
        """Nothing is noted."""

    def scores(self, storage: Storage, kept: Kept) -> Tensor:  # noqa: ARG002
        return kept.positions.float()
