"""StreamingLLM: the first tokens and the newest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.model_info import ModelInfo
from keyhole.methods.eviction import EvictionMethod
from keyhole.methods.facts import EVICTED, Facts
from keyhole.retention import Recency, Scorer


@dataclass(frozen=True)
class StreamingLLM(EvictionMethod):
    """Xiao et al., "Efficient Streaming Language Models with Attention Sinks", ICLR 2024.

    Positions stay as they were in the text; the paper counts them anew within what is kept.
    """

    name: ClassVar[str] = "streamingllm"
    paper: ClassVar[str] = "StreamingLLM, arXiv 2309.17453"
    summary: ClassVar[str] = "keeps the first tokens and the newest"
    facts: ClassVar[Facts] = Facts(
        stored="The keys and values of the sinks and of the newest tokens, and their positions.",
        select="Nothing is selected: all that was kept is read.",
        best_for="Endless text of which only the end matters; the baseline that every method must beat.",
        weak_at="Everything in the middle is gone.",
        kept=EVICTED,
    )

    every: int = 1

    def scorer(self, info: ModelInfo, place: int) -> Scorer:  # noqa: ARG002
        return Recency()
