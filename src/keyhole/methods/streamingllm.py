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

    Positions are those of the original text; the paper renumbers them within the kept tokens.
    """

    name: ClassVar[str] = "streamingllm"
    paper: ClassVar[str] = "StreamingLLM, arXiv 2309.17453"
    summary: ClassVar[str] = "keeps the first tokens and the newest"
    facts: ClassVar[Facts] = Facts(
        stored="Keys and values of the sinks and the newest tokens, and their positions.",
        select="No selection: all kept tokens are read.",
        best_for="Endless text of which only the end matters; a baseline for eviction.",
        weak_at="Everything between sinks and window is lost.",
        kept=EVICTED,
    )

    every: int = 1

    def scorer(self, info: ModelInfo, place: int) -> Scorer:  # noqa: ARG002
        return Recency()
