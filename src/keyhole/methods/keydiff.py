"""KeyDiff: keeps the tokens whose keys are least like the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.model_info import ModelInfo
from keyhole.methods.eviction import EvictionMethod
from keyhole.methods.facts import ALIKE, EVICTED, Differs, Facts
from keyhole.retention import KeyDifference, Scorer


@dataclass(frozen=True)
class KeyDiff(EvictionMethod):
    """Park et al., "KeyDiff: Key Similarity-Based KV Cache Eviction", 2025.

    Keys that point away from the mean direction of all keys of their head get more attention. The paper
    evicts after each block of 128 prompt tokens, and after each generated token; here a prompt is seen whole,
    unless `prompt=pieces`. Published: a loss of at most 0.04% on LongBench with 8,192 tokens kept
    (Llama 3.1 8B, Llama 3.2 3B).
    """

    name: ClassVar[str] = "keydiff"
    paper: ClassVar[str] = "KeyDiff, arXiv 2504.15364"
    summary: ClassVar[str] = "keeps the tokens whose keys are least like the mean key"
    facts: ClassVar[Facts] = Facts(
        stored="Kept keys and values, and their positions.",
        select="No selection: all kept tokens are read.",
        best_for="Cheap eviction: two passes over the keys, without queries or attention weights.",
        weak_at="Scores do not depend on the question. Text that repeats itself is dropped, even where it is "
        "asked for. Dropped tokens are lost to later questions.",
        kept=EVICTED,
        differs=(Differs("sinks", "0", ALIKE), Differs("window", "0", ALIKE)),
    )

    def scorer(self, info: ModelInfo, place: int) -> Scorer:  # noqa: ARG002
        return KeyDifference()
