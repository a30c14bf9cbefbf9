"""Expected Attention: tokens are kept by the attention that queries to come are expected to pay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from keyhole.core.errors import SpecError
from keyhole.core.model_info import ModelInfo
from keyhole.methods import options
from keyhole.methods.eviction import EvictionMethod
from keyhole.methods.facts import ALIKE, EVICTED, Differs, Facts
from keyhole.retention import ExpectedAttention, Scorer


@dataclass(frozen=True)
class ExpectedAttentionKV(EvictionMethod):
    """Devoto et al., "Expected Attention: KV Cache Compression by Estimating Attention from Future Queries
    Distribution", 2025.

    Follows the released code (kvpress) where it differs from the paper: the norm is that of the value, not of
    its output projection, and the covariance is rotated by the mean rotation. Tokens of the `sinks` are left
    out of the statistics.
    """

    name: ClassVar[str] = "expectedattention"
    paper: ClassVar[str] = "Expected Attention, arXiv 2510.00636"
    summary: ClassVar[str] = "keeps what the distribution of the prompt's queries expects to be attended to"
    facts: ClassVar[Facts] = Facts(
        stored="The keys and values that were kept, their positions, and once for each query head the mean "
        "and the scatter of queries, `4 * D * (D + 1)`.",
        select="Nothing is selected: all that was kept is read.",
        best_for="Compressing a text before its question is known: scores do not depend on the prompt's end.",
        weak_at="Queries that are distributed unlike those of the text. Scoring multiplies each key with a "
        "matrix, `D * D` products for each query head. A later question may need what was dropped.",
        kept=EVICTED,
        differs=(
            Differs("window", "0", ALIKE),
            Differs("statistics", "hidden_states", "the same numbers, without looking for projections"),
        ),
    )

    future: int = options.integer(
        512, ge=1, unit="tokens", help="Positions after the newest token that queries are expected at."
    )
    covariance: bool = options.flag(True, help="Count the variance of logits, not their mean alone.")
    epsilon: float = options.number(
        0.0, ge=0, le=1, help="Added to the expected attention before it is multiplied with the value's norm."
    )
    statistics: str = options.choice(
        "queries",
        ("queries", "hidden_states"),
        help='What the distribution is taken of: the "queries" of the text, turned back before their '
        'rotation, or its "hidden_states" through the query projection.',
    )

    def scorer(self, info: ModelInfo, place: int) -> Scorer:
        return ExpectedAttention(
            info.rope(place),
            future=self.future,
            sinks=self.sinks,
            covariance=self.covariance,
            epsilon=self.epsilon,
            projections=None if self.statistics == "queries" else self._projections(info, place),
        )

    def _projections(self, info: ModelInfo, place: int):
        if info.projections is None:
            raise SpecError(f"{self.name}: statistics=hidden_states needs a model; give statistics=queries")
        return info.projections(place)
