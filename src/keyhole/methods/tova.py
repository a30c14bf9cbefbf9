"""TOVA: keeps what the newest token attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.errors import SpecError
from keyhole.core.model_info import ModelInfo
from keyhole.methods.eviction import EvictionMethod
from keyhole.methods.facts import ALIKE, EVICTED, Differs, Facts
from keyhole.retention import LatestAttention, Scorer


@dataclass(frozen=True)
class Tova(EvictionMethod):
    """Oren et al., "Transformers are Multi-State RNNs", EMNLP 2024.

    After each token the one with the least attention from the newest query, a mean over the heads of the
    layer, is dropped. The paper keeps neither sinks nor a window; both are kept here as in the other methods.
    Published: an eighth of the cache within half a point of perplexity (LLaMA-2 7B, 4,096 tokens).
    """

    name: ClassVar[str] = "tova"
    paper: ClassVar[str] = "TOVA, arXiv 2401.06104"
    summary: ClassVar[str] = "keeps what the newest token attends to, the same tokens for all heads"
    facts: ClassVar[Facts] = Facts(
        stored="Kept keys and values, their positions, and the newest query.",
        select="No selection: all kept tokens are read, and the newest token's attention is computed again.",
        best_for="Long answers with a small state: no sums of attention to keep, and one set for all heads.",
        weak_at="What one token does not attend to is gone: a fact that only a later token asks for is lost. "
        "Heads that look elsewhere than the others are outvoted.",
        kept=EVICTED,
        differs=(Differs("sinks", "0", ALIKE), Differs("window", "0", ALIKE)),
    )

    every: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ragged:
            raise SpecError(
                f"{self.name}: heads=adaptive cannot be, since all heads keep the same tokens; leave it out"
            )

    def scorer(self, info: ModelInfo, place: int) -> Scorer:  # noqa: ARG002
        return LatestAttention()
