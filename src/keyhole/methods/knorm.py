"""L2 norm: tokens whose keys are short are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.model_info import ModelInfo
from keyhole.methods.eviction import EvictionMethod
from keyhole.methods.facts import ALIKE, EVICTED, Differs, Facts
from keyhole.retention import KeyNorm, Scorer


@dataclass(frozen=True)
class KNorm(EvictionMethod):
    """Devoto et al., "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression", EMNLP 2024.

    The paper leaves the first two layers whole and has neither sinks nor a window of tokens that are always
    kept; here every layer drops tokens, and these are kept as in the other methods.
    """

    name: ClassVar[str] = "knorm"
    paper: ClassVar[str] = "L2 norm, arXiv 2406.11430"
    summary: ClassVar[str] = "keeps the tokens whose keys have the smallest norm"
    facts: ClassVar[Facts] = Facts(
        stored="The keys and values that were kept, and their positions.",
        select="Nothing is selected: all that was kept is read.",
        best_for="Eviction that needs no queries and no attention weights, and costs one pass over the keys.",
        weak_at="It knows nothing of what is asked. Models that normalise their keys have norms that say "
        "little. A later question may need what was dropped.",
        kept=EVICTED,
        differs=(Differs("sinks", "0", ALIKE), Differs("window", "0", ALIKE)),
    )

    def scorer(self, info: ModelInfo, place: int) -> Scorer:  # noqa: ARG002
        return KeyNorm()
