"""L2 norm: keeps the tokens whose keys have the smallest norm."""

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

    The paper skips the first two layers and has neither sinks nor a window; here every layer drops tokens,
    and sinks and window are kept as in the other methods.
    """

    name: ClassVar[str] = "knorm"
    paper: ClassVar[str] = "L2 norm, arXiv 2406.11430"
    summary: ClassVar[str] = "keeps the tokens whose keys have the smallest norm"
    facts: ClassVar[Facts] = Facts(
        stored="Kept keys and values, and their positions.",
        select="No selection: all kept tokens are read.",
        best_for="Cheap eviction: one pass over the keys, without queries or attention weights.",
        weak_at="Scores do not depend on the question. In models with key normalisation, norms carry little "
        "information. Dropped tokens are lost to later questions.",
        kept=EVICTED,
        differs=(Differs("sinks", "0", ALIKE), Differs("window", "0", ALIKE)),
    )

    def scorer(self, info: ModelInfo, place: int) -> Scorer:  # noqa: ARG002
        return KeyNorm()
